"""ggml: ggml_flash_attn_ext with max_bias, its native ALiBi."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np
from cases import Case, numpy_dtype
from peers_common import INFERENCE, first_position, limits
from providers import Arrays, Prepared, Provider

# Names a libggml.so; run.py sets it from --ggml.
PATH_VARIABLE = "ALIBI_BENCH_GGML"
# Slopes of 2^(-8 h / n), h = 1..n, for a power of two.
_MAX_BIAS = 8.0


class _Graph:
    """One attention node over tensors of its own, and a CPU backend to compute it."""

    def __init__(self, case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        import ggml_library as ggml

        self._ggml = g = ggml.library
        codes = {"float32": ggml.F32, "float16": ggml.F16, "bfloat16": ggml.BF16}
        mask = _distances(case)
        data = [(q, ggml.F32), *((x, codes[case.dtype]) for x in (k, v)), (mask, ggml.F16)]
        result_bytes = 4 * q.size
        size = sum(x.nbytes + 64 for x, _ in data) + result_bytes + (1 << 20)
        self._context = g.ggml_init(ggml.InitParams(size, None, False))
        tensors = [self._tensor(x, code) for x, code in data]
        self._out = g.ggml_flash_attn_ext(self._context, *tensors, case.scale, _MAX_BIAS, 0.0)
        self._graph = g.ggml_new_graph(self._context)
        g.ggml_build_forward_expand(self._graph, self._out)
        self._backend = g.ggml_backend_cpu_init()
        g.ggml_backend_cpu_set_n_threads(self._backend, case.threads)
        self._shape = (case.batch, case.queries, case.heads, case.head_dim)

    def _tensor(self, array: np.ndarray, code: int) -> Any:
        """A tensor with the values of `array`; ggml names sizes from the last axis on."""
        tensor = self._ggml.ggml_new_tensor_4d(self._context, code, *reversed(array.shape))
        assert self._ggml.ggml_nbytes(tensor) == array.nbytes
        array = np.ascontiguousarray(array)
        ctypes.memmove(self._ggml.ggml_get_data(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def run(self) -> None:
        status = self._ggml.ggml_backend_graph_compute(self._backend, self._graph)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")

    def outputs(self) -> Arrays:
        self.run()
        pointer = ctypes.cast(self._ggml.ggml_get_data(self._out), ctypes.POINTER(ctypes.c_float))
        out = np.ctypeslib.as_array(pointer, self._shape)  # [B, S, H, D]
        return {"out": out.transpose(0, 2, 1, 3).copy()}

    def __del__(self) -> None:
        self._ggml.ggml_backend_free(self._backend)
        self._ggml.ggml_free(self._context)


def _distances(case: Case) -> np.ndarray:
    """[1, 1, Sq, Sk] float16: minus the distance, which ggml multiplies by the slopes; -inf where
    the mask forbids. float16 counts exactly up to 2048. One per batch item where these differ.
    """
    mask = np.empty((len(case.lengths or [0]), 1, case.queries, case.keys), np.float16)
    keys = np.arange(case.keys, dtype=np.float32)
    for row in range(case.queries):
        distance = keys - (row + first_position(case))
        mask[:, 0, row] = -np.abs(distance)
        if case.causal:
            mask[:, 0, row, distance > 0] = -np.inf
    for item, length in enumerate(case.lengths or ()):
        mask[item, :, :, length:] = -np.inf
    return mask


def _ggml(case: Case, inputs: Arrays) -> Prepared:
    q = inputs["q"]
    k, v = (inputs[n].astype(numpy_dtype(case.dtype), copy=False) for n in "kv")
    graph = _Graph(case, q, k, v)
    return Prepared(graph.run, graph.outputs)


PROVIDERS = [
    Provider(
        "ggml flash_attn_ext",
        "peer",
        "ggml_library",
        _ggml,
        partial(limits, modes=INFERENCE),
        "native max_bias, distances in float16",
    )
]
