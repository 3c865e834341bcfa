"""The float64 answer of a whole model, forward and backward: what truth.py is to a kernel.

    h = x + attention(kqv(norm(x)))    y = h + fc2(gelu(fc1(norm(h))))    loss = mean (y - target)^2

Each step is a pair of functions, value and gradient; nothing here is shared with any provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models import ModelCase

Arrays = dict[str, np.ndarray]

INPUT_GRADIENT = "dx"
NORM_EPSILON = 1e-5

# Largest error relative to the largest element of the same array. Twelve layers of float32 stay
# at a few 1e-6; a wrong bias, order, scale or gradient is above by orders.
TOLERANCE = 1e-4


def gradient_of(weight: str) -> str:
    return f"d {weight}"


class ModelTruth:
    """Output of the model and, for a training case, the gradients of its input and weights."""

    def __init__(self, case: ModelCase, inputs: Arrays) -> None:
        self.case = case
        self._weights = {n: a.astype(np.float64) for n, a in inputs.items()}
        self.values: Arrays = {}
        x, tape = self._weights["x"], []
        for i in range(case.layers):
            x, saved = self._layer(x, f"layers.{i}.")
            tape.append(saved)
        self.values["out"] = x
        if case.mode == "training":
            difference = x - self._weights["target"]
            dx = 2 * difference / difference.size
            for i in reversed(range(case.layers)):
                dx = self._layer_backward(dx, tape.pop(), f"layers.{i}.")
            self.values[INPUT_GRADIENT] = dx

    def error(self, outputs: Arrays) -> float:
        """Largest error over everything the provider returned, relative to the largest element."""
        return max(self._errors(outputs).values())

    def complaint(self, outputs: Arrays) -> str:
        """Empty when the result is right; otherwise what is wrong with it."""
        missing = [n for n in self.values if n not in outputs]
        if missing:
            return f"did not return {', '.join(missing)}"
        for name, error in self._errors(outputs).items():
            if not error <= TOLERANCE:
                return f"wrong result: {name} is off by {error:.2e} (limit {TOLERANCE:.0e})"
        return ""

    def _errors(self, outputs: Arrays) -> dict[str, float]:
        return {
            name: float(np.max(np.abs(outputs[name] - truth)) / np.max(np.abs(truth)))
            for name, truth in self.values.items()
        }

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0)

    def _dense_backward(self, dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
        rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        self.values[gradient_of(f"{name}.weight")] = drows.T @ rows
        if f"{name}.bias" in self._weights:
            self.values[gradient_of(f"{name}.bias")] = drows.sum(axis=0)
        return dy @ self._weights[f"{name}.weight"]

    def _norm(self, x: np.ndarray, name: str) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        centred = x - x.mean(axis=-1, keepdims=True)
        inverse = (np.mean(centred**2, axis=-1, keepdims=True) + NORM_EPSILON) ** -0.5
        unit = centred * inverse
        y = unit * self._weights[f"{name}.gamma"] + self._weights[f"{name}.beta"]
        return y, (unit, inverse)

    def _norm_backward(
        self, dy: np.ndarray, saved: tuple[np.ndarray, np.ndarray], name: str
    ) -> np.ndarray:
        unit, inverse = saved
        self.values[gradient_of(f"{name}.gamma")] = (dy * unit).sum(axis=(0, 1))
        self.values[gradient_of(f"{name}.beta")] = dy.sum(axis=(0, 1))
        dunit = dy * self._weights[f"{name}.gamma"]
        along = unit * np.mean(dunit * unit, axis=-1, keepdims=True)
        return inverse * (dunit - np.mean(dunit, axis=-1, keepdims=True) - along)

    def _layer(self, x: np.ndarray, name: str) -> tuple[np.ndarray, list]:
        tokens, attn_saved = self._norm(x, f"{name}attn_norm")
        kqv = self._dense(tokens, f"{name}attn.kqv")
        h = x + self._attention(kqv)
        rows, ffn_saved = self._norm(h, f"{name}ffn_norm")
        hidden = self._dense(rows, f"{name}ffn.fc1")
        y = h + self._dense(_gelu(hidden), f"{name}ffn.fc2")
        return y, [tokens, attn_saved, kqv, rows, ffn_saved, hidden]

    def _layer_backward(self, dy: np.ndarray, saved: list, name: str) -> np.ndarray:
        tokens, attn_saved, kqv, rows, ffn_saved, hidden = saved
        dhidden = self._dense_backward(dy, _gelu(hidden), f"{name}ffn.fc2") * _gelu_slope(hidden)
        drows = self._dense_backward(dhidden, rows, f"{name}ffn.fc1")
        dh = dy + self._norm_backward(drows, ffn_saved, f"{name}ffn_norm")
        dkqv = self._attention_backward(dh, kqv)
        dtokens = self._dense_backward(dkqv, tokens, f"{name}attn.kqv")
        return dh + self._norm_backward(dtokens, attn_saved, f"{name}attn_norm")

    def _attention(self, kqv: np.ndarray) -> np.ndarray:
        out = np.empty((*kqv.shape[:2], self.case.width))
        for b, h in np.ndindex(self.case.batch, self.case.heads):
            p, (_, _, v) = self._probabilities(kqv, b, h)
            out[b, :, self._columns(h)] = p @ v
        return out

    def _attention_backward(self, dout: np.ndarray, kqv: np.ndarray) -> np.ndarray:
        width, dkqv = self.case.width, np.empty_like(kqv)
        for b, h in np.ndindex(self.case.batch, self.case.heads):
            p, (k, q, v) = self._probabilities(kqv, b, h)
            do = dout[b, :, self._columns(h)]
            dp = do @ v.T
            ds = self.case.scale * p * (dp - (p * dp).sum(axis=1, keepdims=True))
            for third, gradient in enumerate((ds.T @ q, ds @ k, p.T @ do)):
                dkqv[b, :, self._columns(h, third * width)] = gradient
        return dkqv

    def _probabilities(
        self, kqv: np.ndarray, b: int, h: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """P [S, S] of one head, and its key, query and value."""
        thirds = [kqv[b, :, self._columns(h, i * self.case.width)] for i in range(3)]
        k, q, _ = thirds
        positions = np.arange(len(q))
        distance = positions[None, :] - positions[:, None]
        s = self.case.scale * (q @ k.T) - self.case.slopes[h] * np.abs(distance)
        if self.case.causal:
            s[distance > 0] = -np.inf
        p = np.exp(s - s.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True), thirds

    def _columns(self, head: int, start: int = 0) -> slice:
        size = self.case.head_dim
        return slice(start + head * size, start + (head + 1) * size)


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * _normal_cdf(x)


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    return _normal_cdf(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr  # MindSpore depends on SciPy

    return ndtr(x)
