"""The float64 answer that every provider is checked against before it is timed."""

from __future__ import annotations

import numpy as np
from cases import DECODE, TRAINING, Case

# Largest error against float64 at which a result still counts as the same computation, by dtype:
# inputs are standard normal, outputs of order one. float32 allows the worst honest peer (bias in
# extra columns, about 1e-4 at 8192), float16 a peer that sums in float16.
TOLERANCE = {"float32": 5e-4, "float16": 3e-2, "bfloat16": 5e-2}
# Gradients sum over up to S rows: their magnitude, and with it the error, is up to an order larger.
GRADIENT_TOLERANCE = {"float32": 5e-3, "float16": 1e-1, "bfloat16": 5e-1}

_MAX_PAIRS = 2**28
_ROWS_AT_ONCE = 256


class Truth:
    """Outputs of a case in float64, for the first and last head of the first batch item.

    Gradients need every row; a forward longer than 8192 is checked on 256 rows spread over the
    sequence.
    """

    def __init__(self, case: Case, inputs: dict[str, np.ndarray]) -> None:
        self.case = case
        self.heads = sorted({0, case.heads - 1})
        rows = np.arange(case.queries)
        if case.mode != TRAINING and case.queries * case.keys * len(self.heads) > _MAX_PAIRS:
            rows = np.unique(np.linspace(0, case.queries - 1, 256).astype(int))
        if case.lengths is not None:
            rows = rows[rows < case.lengths[0]]
        self.rows = rows
        parts = [self._head(h, inputs) for h in self.heads]
        self.values = {n: np.stack([p[n] for p in parts]) for n in parts[0]}
        if case.mode == TRAINING and case.group > 1:
            self._add_sharing_heads(inputs)

    def _head(self, head: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        case = self.case
        of = {"q": head, "k": head // case.group, "v": head // case.group, "dout": head}
        q, k, v, dout = (inputs[n][0, h].astype(np.float64) for n, h in of.items())
        out = np.empty((len(self.rows), case.head_dim))
        grads = {"dq": np.zeros_like(q), "dk": np.zeros_like(k), "dv": np.zeros_like(v)}
        keys = np.arange(case.keys)
        end = case.keys if case.lengths is None else case.lengths[0]
        first = case.keys - case.queries if case.mode == DECODE else 0
        for start in range(0, len(self.rows), _ROWS_AT_ONCE):
            rows = self.rows[start : start + _ROWS_AT_ONCE]
            distance = keys[None, :] - (rows + first)[:, None]
            s = case.scale * (q[rows] @ k.T) - case.slopes[head] * np.abs(distance)
            if case.causal:
                s[distance > 0] = -np.inf
            s[:, end:] = -np.inf
            p = np.exp(s - s.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            out[start : start + len(rows)] = p @ v
            if case.mode == TRAINING:
                dp = dout[rows] @ v.T
                ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
                grads["dq"][rows] = case.scale * (ds @ k)
                grads["dk"] += case.scale * (ds.T @ q[rows])
                grads["dv"] += p.T @ dout[rows]
        return {"out": out, **(grads if case.mode == TRAINING else {})}

    def _add_sharing_heads(self, inputs: dict[str, np.ndarray]) -> None:
        """The gradients of keys and values get a share from every query head of the group."""
        group = self.case.group
        for i, head in enumerate(self.heads):
            for other in range(head // group * group, (head // group + 1) * group):
                if other != head:
                    share = self._head(other, inputs)
                    self.values["dk"][i] += share["dk"]
                    self.values["dv"][i] += share["dv"]

    def error(self, outputs: dict[str, np.ndarray]) -> float:
        """Largest absolute error over everything the provider returned."""
        return max(self._errors(outputs).values())

    def complaint(self, outputs: dict[str, np.ndarray]) -> str:
        """Empty when the result is right; otherwise what is wrong with it."""
        missing = [n for n in self.values if n not in outputs]
        if missing:
            return f"did not return {', '.join(missing)}"
        for name, error in self._errors(outputs).items():
            limit = (TOLERANCE if name == "out" else GRADIENT_TOLERANCE)[self.case.dtype]
            if not error <= limit:
                return f"wrong result: {name} is off by {error:.2e} (limit {limit:.0e})"
        return ""

    def _errors(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        errors = {}
        for name, truth in self.values.items():
            group = self.case.group if name in ("dk", "dv") else 1
            got = outputs[name][0, [h // group for h in self.heads]].astype(np.float64)
            if name == "out":
                got = got[:, self.rows]
            errors[name] = float(np.max(np.abs(got - truth)))
        return errors
