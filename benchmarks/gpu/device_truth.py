"""benchmarks/truth.py on a device of PyTorch: the same formula in float64, seconds sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import TRAINING, Case
from truth import Truth

ROWS_AT_ONCE = 1024


class DeviceTruth(Truth):
    """Outputs of a case in float64, for the first and last head of the first batch item."""

    def __init__(self, case: Case, inputs: dict[str, np.ndarray], device: str) -> None:
        self.device = device
        super().__init__(case, inputs)

    def _head(self, head: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        case, training = self.case, self.case.mode == TRAINING

        def upload(array: np.ndarray) -> Any:
            return torch.from_numpy(array).to(self.device, torch.float64)

        q, k, v, dout = (upload(inputs[n][0, head]) for n in ("q", "k", "v", "dout"))
        keys = torch.arange(case.keys, device=self.device)
        first = case.keys - case.queries
        out, dq = torch.empty_like(q[self.rows]), torch.zeros_like(q)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            rows = torch.from_numpy(self.rows[start : start + ROWS_AT_ONCE]).to(self.device)
            distance = keys[None, :] - (rows + first)[:, None]
            s = case.scale * (q[rows] @ k.T) - float(case.slopes[head]) * distance.abs()
            if case.causal:
                s.masked_fill_(distance > 0, float("-inf"))
            p = torch.softmax(s, dim=1)
            out[start : start + len(rows)] = p @ v
            if training:
                dp = dout[rows] @ v.T
                ds = p * (dp - (p * dp).sum(dim=1, keepdim=True))
                dq[rows] = case.scale * (ds @ k)
                dk += case.scale * (ds.T @ q[rows])
                dv += p.T @ dout[rows]
        found = {"out": out} | ({"dq": dq, "dk": dk, "dv": dv} if training else {})
        return {name: x.cpu().numpy() for name, x in found.items()}
