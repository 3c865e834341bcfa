"""The evidence that a GPU gives about the CUDA kernels; run_h200.sh is the way in."""

import site
import sys
from pathlib import Path

# The cases, the truth and the timing statistics are those of the CPU benchmarks, one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Where run_h200.sh puts wheels: PYTHONPATH has the folder, but only `site` reads the .pth files in
# it, and without its own the CuTe DSL of FlashAttention 4 cannot be imported.
WHEELS = Path(__file__).resolve().parents[2] / "build" / "gpu-wheels"


def read_pth_files(folder: Path) -> None:
    if folder.is_dir():
        site.addsitedir(str(folder))


read_pth_files(WHEELS)
