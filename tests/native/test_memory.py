"""How much memory a call of the CPU kernels takes."""

from __future__ import annotations

import subprocess
import sys


def test_rows_in_one_piece_are_not_copied() -> None:
    """Scratch of one thread: less than 1 MB, where a copy of keys and values would be 4 MB more.
    Memory is counted at its highest point, in a process of its own.
    """
    code = """if True:
        from pathlib import Path
        import numpy as np
        from alibi_kernels import native
        q, k, v, out = (np.ones((1, 1, 4096, 128), np.float32) for _ in range(4))
        slopes, results = np.float32([0.5]), (out, np.ones((1, 1, 4096), np.float32))
        small = [x[:, :, :64].copy() for x in (q, k, v)]
        native.attention_forward(*small, slopes, threads=1)
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest point so far
        status = Path("/proc/self/status")
        peak = lambda: int(status.read_text().split("VmHWM:")[1].split()[0])
        before = peak()
        native.attention_forward(q, k, v, slopes, prune=False, out=results, threads=1)
        print(peak() - before)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(result.stdout) < 2048  # kilobytes
