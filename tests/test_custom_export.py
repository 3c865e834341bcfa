"""A trained cell as a MINDIR file: exported here, loaded and run in a fresh process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import _library, contract, rows
from tests.custom_tools import normal, run_python

SPEC = contract.Spec((1, 2, 13, 8), "float32")
SLOPES = contract.Spec((2,), "float32")

# Loads a graph without our Python package: the file alone knows the kernel library.
_LOAD = """
import sys
import mindspore as ms
import numpy as np

net = ms.nn.GraphCell(ms.load(sys.argv[1]))
for i in sys.argv[2:]:
    out = net(ms.Tensor(np.load(f"x{i}.npy")))
    np.save(f"out{i}.npy", out.asnumpy())
assert "alibi_kernels" not in sys.modules
print([line.split()[-1] for line in open("/proc/self/maps") if "libalibi_cpu" in line][0])
"""


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_mindir(
    ms: Any, backend: str, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Net(ms.nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.project = ms.nn.Dense(8, 24, has_bias=False)
            self.slopes = alibi_kernels.TrainedSlopes((0.3, 0.07))

        def construct(self, x):  # type: ignore[no-untyped-def]
            packed = self.project(x).reshape((x.shape[0], x.shape[1], 3, 2, 4))
            return alibi_kernels.alibi_attention_packed(packed, self.slopes(), order="kqv")

    net = Net()
    lengths = (13, 30) if dynamic else (13,)
    want = []
    for i, length in enumerate(lengths):
        x = normal(ms, 2, length, 8, seed=i)
        np.save(f"x{i}.npy", x.asnumpy())
        want.append(net(x).asnumpy())
    example = ms.Tensor(shape=[2, None, 8], dtype=ms.float32) if dynamic else x
    ms.export(net, example, file_name="net", file_format="MINDIR")
    script = tmp_path / "script.py"
    script.write_text(_LOAD)
    done = run_python(script, tmp_path, "net.mindir", *map(str, range(len(lengths))))
    assert done.returncode == 0, done.stderr
    for i, out in enumerate(want):
        # The same kernels; the projection may run in another order of summation.
        np.testing.assert_allclose(np.load(f"out{i}.npy"), out, rtol=0, atol=1e-6)


def test_mindir_for_a_library_elsewhere(
    ms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of docs/design/0040-device-rows.md: a MINDIR names the kernel library by its path,
    which can be rewritten in the file."""
    from mindspore.train.mind_ir_pb2 import ModelProto

    reasons = rows.cpu_reasons(contract.validate_attention(*[SPEC] * 3, SLOPES, fixed_slopes=True))
    if reasons:
        pytest.skip("; ".join(reasons))
    monkeypatch.chdir(tmp_path)

    class Net(ms.nn.Cell):
        def construct(self, x):  # type: ignore[no-untyped-def]
            return alibi_kernels.alibi_attention(x, x, x, (0.3, 0.07), backend="cpu")

    x = normal(ms, 1, 2, 13, 8)
    np.save("x0.npy", x.asnumpy())
    want = Net()(x).asnumpy()
    ms.export(Net(), x, file_name="net", file_format="MINDIR")

    here = _library.load("cpu").path
    there = str(shutil.copy(here, tmp_path))
    model = ModelProto()
    model.ParseFromString(Path("net.mindir").read_bytes())
    for primitive in model.primitives:
        for attribute in primitive.attribute:
            attribute.s = attribute.s.replace(here.encode(), there.encode())
    Path("moved.mindir").write_bytes(model.SerializeToString())

    script = tmp_path / "script.py"
    script.write_text(_LOAD)
    done = run_python(script, tmp_path, "moved.mindir", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == there
    np.testing.assert_array_equal(np.load("out0.npy"), want)
