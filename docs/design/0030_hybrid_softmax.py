"""Evidence for 0030: a row softmax in MindSpore's Hybrid DSL, interpreted and compiled, on the CPU.

python docs/design/0030_hybrid_softmax.py        (needs the packages decorator and sympy)
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops import kernel


@kernel
def softmax(a):
    out = output_tensor(a.shape, a.dtype)  # noqa: F821  a word of the DSL, as allocate below
    top = allocate((a.shape[0],), a.dtype)  # noqa: F821
    total = allocate((a.shape[0],), a.dtype)  # noqa: F821
    for i in range(a.shape[0]):
        top[i] = a[i, 0]
        for j in range(a.shape[1]):
            top[i] = max(top[i], a[i, j])
        total[i] = 0.0
        for j in range(a.shape[1]):
            out[i, j] = exp(a[i, j] - top[i])  # noqa: F821
            total[i] = total[i] + out[i, j]
        for j in range(a.shape[1]):
            out[i, j] = out[i, j] / total[i]
    return out


class Run(ms.nn.Cell):
    def __init__(self, func_type: str) -> None:
        super().__init__()
        like_input = {"out_shape": lambda shape: shape, "out_dtype": lambda dtype: dtype}
        self.softmax = ops.Custom(softmax, func_type=func_type, **like_input)

    def construct(self, x):
        return self.softmax(x)


def main() -> None:
    plugins = Path(ms.__file__).parent / "lib" / "plugin"
    print(f"mindspore {ms.__version__}, libakg.so in:", end=" ")
    print(*sorted(str(p.parent.relative_to(plugins)) for p in plugins.rglob("libakg.so")))
    os.chdir(tempfile.mkdtemp())  # the compiler leaves files, and takes up old ones, where it runs
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    x = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    shifted = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    truth = shifted / shifted.sum(1, keepdims=True)
    for func_type in ("pyfunc", "hybrid"):
        try:
            got = Run(func_type)(ms.Tensor(x)).asnumpy().astype(np.float64)
        except Exception as error:  # whatever the compiler raises is the finding
            print(f"{func_type}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            continue
        sums = ", ".join(f"{s:.4f}" for s in got.sum(1)[:3])
        print(f"{func_type}: max error {np.abs(got - truth).max():.2g}, row sums {sums}")


if __name__ == "__main__":
    main()
