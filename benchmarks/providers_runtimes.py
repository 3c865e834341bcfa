"""OpenVINO and ONNX Runtime: inference runtimes with an attention operator that takes a bias or
slopes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from cases import DECODE, Case, numpy_dtype
from peers_common import INFERENCE, dense_bias, limits
from providers import Arrays, Prepared, Provider

_OPENVINO_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_NUMPY_TYPES = {short: numpy_dtype(name) for name, short in _OPENVINO_TYPES.items()}
_PAGE = 32  # rows of a cache block of the CPU plugin


def _openvino_compile(model: Any, case: Case) -> Any:
    import openvino as ov

    precision = _OPENVINO_TYPES[case.dtype]
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": case.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return ov.Core().compile_model(model, "CPU", options)


def _openvino_parameter(name: str, shape: list[int], dtype: Any) -> Any:
    from openvino import PartialShape
    from openvino import opset13 as op

    parameter = op.parameter(PartialShape(shape), dtype)
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _paged_model(case: Case) -> Any:
    """One PagedAttention node with native alibi_slopes: 28 inputs, everything after the slopes
    switched off.
    """
    import openvino._pyopenvino.op as raw
    from openvino import Model, Type
    from openvino import opset13 as op

    heads = {"q": case.heads, "k": case.key_heads, "v": case.key_heads}
    tokens = [_openvino_parameter(n, [-1, h * case.head_dim], Type.f32) for n, h in heads.items()]
    page = [-1, case.key_heads, _PAGE, case.head_dim]
    caches = [_openvino_parameter(n, page, Type.dynamic) for n in ("key_cache.0", "value_cache.0")]
    index_names = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
    indices = [_openvino_parameter(n, [-1], Type.i32) for n in index_names]

    def constant(value: Any, dtype: Any) -> Any:
        return op.constant(np.asarray(value, dtype))

    none_int, none_float = constant([], np.int32), constant([], np.float32)
    constants = [
        constant(case.scale, np.float32),
        constant(0, np.int32),  # sliding_window: off
        constant(case.slopes, np.float32),
        constant(case.keys, np.int32),  # max_context_len
        constant(np.zeros(case.batch), np.int32),  # score_aggregation_window
        none_int,  # rotated_block_indices, rotation_deltas, rotation_trig_lut
        constant(np.zeros((0, 0)), np.int32),
        constant(np.zeros((0, 0)), np.float32),
        none_float,  # xattention_threshold, _block_size, _stride
        constant(64, np.int32),
        constant(8, np.int32),
        none_float,  # sinks
        constant(0, np.int32),  # adaptive_rkv_start_size and its three lists, token_type_ids
        *[none_int] * 4,
        constant([], np.uint8),  # qq_bias, qq_bias_begins
        none_int,
    ]
    parameters = [*tokens, *caches, *indices]
    node = raw._PagedAttentionExtension([x.output(0) for x in [*parameters, *constants]])
    info = node.get_rt_info()
    for side in "kv":
        info[f"{side}_head_size"] = case.head_dim
        info[f"num_{side}_heads"] = case.key_heads
    return Model([op.result(node.output(0))], parameters)


def _blocks(case: Case, array: np.ndarray, pages: int, dtype: type) -> np.ndarray:
    """A cache of the CPU plugin with the rows of `array`: [B * pages, H, rows of a block, D]."""
    cache = np.zeros((case.batch, pages, case.key_heads, _PAGE, case.head_dim), dtype)
    if case.mode == DECODE:
        for page in range(pages):
            rows = array[:, :, page * _PAGE : (page + 1) * _PAGE]
            cache[:, page, :, : rows.shape[2]] = rows
    return cache.reshape(-1, case.key_heads, _PAGE, case.head_dim)


def _paged(case: Case, inputs: Arrays) -> Prepared:
    """Prefill: all tokens at once. Decode: the cache holds all keys but the last, whose token is
    computed.
    """
    import openvino as ov

    compiled = _openvino_compile(_paged_model(case), case)
    request = compiled.create_infer_request()
    pages = -(-case.keys // _PAGE)
    caches = []
    for name, port in zip("kv", compiled.inputs[3:5], strict=True):
        # On CPUs without float16 arithmetic the plugin keeps a bfloat16 cache instead.
        kind = port.get_element_type()
        cache = _blocks(case, inputs[name], pages, _NUMPY_TYPES[kind.get_type_name()])
        # The tensor of a type that NumPy has not is made over the bits.
        bits = cache.view(np.uint16) if kind == ov.Type.bf16 else cache
        request.set_tensor(port, ov.Tensor(bits, ov.Shape(cache.shape), kind))
        caches.append(cache)

    # Of every batch item, one after the other, without padding.
    lengths = np.array(case.lengths or [case.queries] * case.batch)
    real = np.arange(case.queries)[None, :] < lengths[:, None]

    def tokens(array: np.ndarray) -> np.ndarray:
        width = array.shape[1] * case.head_dim
        return np.ascontiguousarray(array.transpose(0, 2, 1, 3)[real]).reshape(-1, width)

    new = {n: tokens(inputs[n][:, :, -case.queries :]) for n in "qkv"}
    integers = {
        "past_lens": np.full(case.batch, case.keys - case.queries),
        "subsequence_begins": np.concatenate([[0], np.cumsum(lengths)]),
        "block_indices": np.arange(case.batch * pages),
        "block_indices_begins": np.arange(case.batch + 1) * pages,
    }
    for name, array in new.items():
        request.set_tensor(name, ov.Tensor(array))
    for name, array in integers.items():
        request.set_tensor(name, ov.Tensor(array.astype(np.int32)))

    def run() -> None:
        assert caches  # the request reads them where they are
        request.infer()

    def outputs() -> Arrays:
        run()
        flat = np.array(request.get_output_tensor(0).data, np.float32)
        out = np.zeros((case.batch, case.queries, case.heads, case.head_dim), np.float32)
        out[real] = flat.reshape(-1, case.heads, case.head_dim)
        return {"out": out.transpose(0, 2, 1, 3)}

    return Prepared(run, outputs)


def _openvino_sdpa(case: Case, inputs: Arrays) -> Prepared:
    import openvino as ov
    from openvino import Model, Type
    from openvino import opset13 as op

    shape = {n: list(inputs[n].shape) for n in "qkv"}
    parameters = [_openvino_parameter(n, shape[n], Type.f32) for n in "qkv"]
    bias = dense_bias(case)
    mask = _openvino_parameter("mask", list(bias.shape), Type.f32)
    scale = op.constant(np.float32(case.scale))
    node = op.scaled_dot_product_attention(*parameters, mask, scale, causal=False)
    compiled = _openvino_compile(Model([op.result(node.output(0))], [*parameters, mask]), case)
    request = compiled.create_infer_request()
    for name in "qkv":
        request.set_tensor(name, ov.Tensor(np.ascontiguousarray(inputs[name])))
    request.set_tensor("mask", ov.Tensor(bias, shared_memory=True))

    def run() -> None:
        assert bias.size  # the request reads it where it is
        request.infer()

    def outputs() -> Arrays:
        run()
        return {"out": np.array(request.get_output_tensor(0).data, np.float32)}

    return Prepared(run, outputs)


# ---- ONNX Runtime


def _onnxruntime(case: Case, inputs: Arrays) -> Prepared:
    """MultiHeadAttention of the com.microsoft domain with the bias as its attention_bias input."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    width = case.heads * case.head_dim

    def declare(name: str, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v", "", "", "bias"],
        ["out"],
        domain="com.microsoft",
        num_heads=case.heads,
        scale=case.scale,
    )
    token_shape = [case.batch, case.queries, width]
    bias = np.maximum(dense_bias(case), np.float32(-1e30))
    ports = [declare("q", token_shape)]
    ports += [declare(n, [case.batch, case.keys, width]) for n in "kv"]
    ports += [declare("bias", list(bias.shape))]
    graph = helper.make_graph([node], "attention", ports, [declare("out", token_shape)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def tokens(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(case.batch, -1, width)

    feed = {n: tokens(inputs[n]) for n in "qkv"} | {"bias": bias}

    def run() -> Any:
        return session.run(None, feed)[0]

    def outputs() -> Arrays:
        shape = (case.batch, case.queries, case.heads, case.head_dim)
        return {"out": run().reshape(shape).transpose(0, 2, 1, 3)}

    return Prepared(run, outputs)


PROVIDERS = [
    Provider(
        "OpenVINO PagedAttention",
        "peer",
        "openvino",
        _paged,
        lambda case: (
            limits(case, modes=INFERENCE) + ([] if case.causal else ["causal attention only"])
        ),
        "native alibi_slopes",
    ),
    Provider(
        "OpenVINO SDPA, mask",
        "peer",
        "openvino",
        _openvino_sdpa,
        partial(limits, modes=INFERENCE, needs_bias=True, grouped=False),
        "dense bias",
    ),
    Provider(
        "ONNX Runtime, bias",
        "peer",
        "onnxruntime",
        _onnxruntime,
        partial(limits, modes=INFERENCE, dtypes=("float32",), needs_bias=True, grouped=False),
        "dense bias",
    ),
]
