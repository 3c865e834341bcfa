"""The operators of a library on one case, with the interface that tests/cuda/checks.py takes.

    calls = Calls(library, arrays, case, "float16", inputs)
    out, lse = calls.forward()
    dq, dk, dv, dslopes = calls.backward()

What goes in and out are NumPy arrays; between them everything is as MindSpore would do it: the
shapes of the outputs come from the operator, and the slopes are an operand, as every library whose
kernels read device memory takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.aot import Operator
from benchmarks.gpu.memory import Array, Arrays
from tests.cases import NUMPY_DTYPES, Case, Inputs


def attributes(case: Case, prune: bool, **more: Any) -> dict[str, Any]:
    """What alibi_kernels/custom.py would pass; the scale only where a caller gives one."""
    every = {
        "scale": case.scale,
        "causal": case.causal,
        "bias": case.bias,
        "input_layout": case.layout,
        "prune": prune,
        "has_spans": case.spans is not None,
        **more,
    }
    return {name: value for name, value in every.items() if value is not None}


class Calls:
    """alibi_attention and alibi_attention_weights."""

    def __init__(
        self,
        library: Path,
        arrays: Arrays,
        case: Case,
        dtype: str,
        x: Inputs,
        prune: bool = True,
        **more: Any,
    ) -> None:
        self.library, self.arrays, self.type = library, arrays, NUMPY_DTYPES[dtype]
        self.attributes = attributes(case, prune, **more)
        self.q, self.k, self.v, self.dout, self.dlse = map(
            arrays.of, (x.q, x.k, x.v, x.dout, x.dlse)
        )
        # Slopes are an attribute on the host; an operand otherwise, which gets a gradient unless
        # the attribute fixed_slopes says that it is a constant.
        operand = "slopes" not in self.attributes
        self.trained = operand and not self.attributes.get("fixed_slopes", False)
        self.modes = [arrays.of(x.slopes)] if operand else []
        self.modes += [] if x.spans is None else [arrays.of(x.spans)]

    def bind(
        self, symbol: str, inputs: Sequence[Array], dtypes: Sequence[Any]
    ) -> tuple[Callable[[], None], list[Array]]:
        """One operator on these inputs, and new outputs for it."""
        operator = Operator(self.library, symbol, self.attributes)
        operands = [x.operand for x in inputs]
        shapes = operator.output_shapes(operands)
        outputs = [self.arrays.empty(s, d) for s, d in zip(shapes, dtypes, strict=True)]
        every = operands + [x.operand for x in outputs]
        return operator.bind(every, self.arrays.memory.stream), outputs

    def _run(self, symbol: str, inputs: Sequence[Array], dtypes: Sequence[Any]) -> list[Array]:
        run, outputs = self.bind(symbol, inputs, dtypes)
        run()
        self.arrays.memory.synchronize()
        self.arrays.check_all()
        return outputs

    def forward(self) -> tuple[Any, ...]:
        """(out, lse)"""
        inputs = [self.q, self.k, self.v, *self.modes]
        self.results = self._run("AlibiAttentionFwd", inputs, (self.type, np.float32))
        return tuple(x.numpy() for x in self.results)

    def backward(self) -> tuple[Any, ...]:
        """(dq, dk, dv, dslopes), after forward(); no dslopes when the slopes are fixed"""
        inputs = [self.q, self.k, self.v, *self.modes, *self.results, self.dout, self.dlse]
        dtypes = [self.type] * 3 + [np.float32] * self.trained
        return tuple(x.numpy() for x in self._run("AlibiAttentionBwd", inputs, dtypes))

    def weights(self) -> Any:
        inputs = [self.q, self.k, *self.modes]
        (self.p,) = self._run("AlibiWeightsFwd", inputs, (self.type,))
        return self.p.numpy()

    def weights_backward(self, dp: Any) -> tuple[Any, ...]:
        """(dq, dk, dslopes), after weights()"""
        inputs = [self.q, self.k, *self.modes, self.p, self.arrays.of(dp)]
        dtypes = [self.type] * 2 + [np.float32] * self.trained
        return tuple(x.numpy() for x in self._run("AlibiWeightsBwd", inputs, dtypes))


class PackedCalls(Calls):
    """alibi_attention_packed, for a case in BSND with one length and one number of heads."""

    def __init__(self, *arguments: Any, order: str = "kqv", **more: Any) -> None:
        super().__init__(*arguments, order=order, **more)
        self.order, x = order, arguments[4]
        packed = np.stack([getattr(x, name) for name in order], axis=2)
        self.packed = self.arrays.of(packed)

    def forward(self) -> tuple[Any, ...]:
        inputs = [self.packed, *self.modes]
        self.results = self._run("AlibiPackedFwd", inputs, (self.type, np.float32))
        return tuple(x.numpy() for x in self.results)

    def backward(self) -> tuple[Any, ...]:
        inputs = [self.packed, *self.modes, *self.results, self.dout, self.dlse]
        dtypes = [self.type] + [np.float32] * self.trained
        packed, *rest = (x.numpy() for x in self._run("AlibiPackedBwd", inputs, dtypes))
        thirds = [packed[:, :, self.order.index(name)] for name in "qkv"]
        return (*thirds, *rest)
