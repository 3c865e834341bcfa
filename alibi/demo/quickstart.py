"""A model of the package, run fused and on plain operators."""

from __future__ import annotations

import numpy as np
from mindspore import ops

from alibi import ALiBiConfig, ALiBiTransformer

CODE = """\
>>> model = ALiBiTransformer(ALiBiConfig())
>>> model(ops.randn(8, 100, 256)).shape"""


def show() -> float:
    """Prints the quickstart and returns the largest difference between the two paths."""
    print(f"Quickstart\n\n{CODE}", flush=True)
    fused = ALiBiTransformer(ALiBiConfig()).set_train(False)
    plain = ALiBiTransformer(ALiBiConfig(fused=False)).set_train(False)
    for copy, original in zip(plain.get_parameters(), fused.get_parameters(), strict=True):
        copy.set_data(original.value())
    x = ops.randn(8, 100, 256)
    y = fused(x).asnumpy()
    print(y.shape)
    difference = float(np.abs(y - plain(x).asnumpy()).max())
    print(
        "\nThe same weights with fused=False, on plain MindSpore operators: outputs up to "
        f"{np.abs(y).max():.2f}, largest difference {difference:.1e}.\n",
        flush=True,
    )
    return difference
