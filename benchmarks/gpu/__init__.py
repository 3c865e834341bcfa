"""The evidence that a GPU gives about the CUDA kernels; run_h200.sh is the way in."""

import sys
from pathlib import Path

# The cases, the truth and the timing statistics are those of the CPU benchmarks, one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
