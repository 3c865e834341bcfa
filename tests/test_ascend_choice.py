"""Which row runs a call on Ascend and why, and how MindSpore reaches an op of our package."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import _cann, ascend, contract, registry, rows
from tests import fake_cann, oracle
from tests.compare import assert_close
from tests.custom_tools import normal

SLOPES = (0.5, 0.125)
MISSING = "ASCEND_OPP_PATH is not set; run `source <CANN>/set_env.sh` first"


def signature(
    heads: int = 2,
    head_dim: int = 16,
    dtype: str = "float16",
    length: int | None = 4,
    **options: Any,
) -> contract.Signature:
    x = contract.Spec((1, heads, length, head_dim), dtype)
    if options.get("input_layout") == "BSND":
        x = contract.Spec((1, length, heads, head_dim), dtype)
    spans = contract.Spec((1, 3), "int32") if options.pop("with_spans", False) else None
    fixed = options.pop("fixed_slopes", True)
    slopes = contract.Spec((heads,), "float32")
    return contract.validate_attention(x, x, x, slopes, spans, fixed_slopes=fixed, **options)


WEIGHTS = contract.validate_weights(
    *[contract.Spec((1, 2, 4, 16), "float16")] * 2, contract.Spec((2,), "float32")
)

# What each row refuses, where everything else is right.
REFUSED: tuple[tuple[str, contract.Signature, str], ...] = (
    ("ascend", signature(dtype="float32"), "dtype is float32, and it takes float16 and bfloat16"),
    ("ascend", signature(head_dim=257), "head_dim is 257, and the kernels take at most 256"),
    ("ascend", signature(length=None), "a graph with dynamic shapes; it needs every size"),
    ("ascend", signature(length=0), "a tensor is empty"),
    (
        "ascend",
        signature(heads=512, head_dim=256, input_layout="BSND"),
        "heads * head_dim is 131072, and layout BSND takes at most 65535",
    ),
    ("ascend_builtin", WEIGHTS, "it does not return the weights"),
    (
        "ascend_builtin",
        signature(fixed_slopes=False),
        "slopes are a tensor, and it has no gradient",
    ),
    ("ascend_builtin", signature(with_spans=True), "it takes no spans"),
    ("ascend_builtin", signature(bias="signed"), 'bias is "signed", and it knows "symmetric" only'),
    ("ascend_builtin", signature(head_dim=40), "head_dim is 40, and it takes multiples of 16"),
    ("ascend_builtin", signature(heads=512), "heads_q is 512, and it takes at most 256"),
    ("ascend_builtin", signature(dtype="float32"), "dtype is float32"),
)


@pytest.mark.parametrize(("name", "call", "reason"), REFUSED)
def test_each_limit_is_a_reason(
    op_package: Path, name: str, call: contract.Signature, reason: str
) -> None:
    row = next(row for row in registry.BACKENDS if row.name == name)
    reasons = row.not_supported_reasons(call)
    assert any(text.startswith(reason) for text in reasons), reasons
    assert row.not_supported_reasons(signature()) == []


def test_lengths_that_differ_and_graphs_are_not_for_the_builtin(op_package: Path) -> None:
    q, k = (contract.Spec((1, 2, n, 16), "float16") for n in (4, 9))
    slopes = contract.Spec((2,), "float32")
    call = contract.validate_attention(q, k, k, slopes, fixed_slopes=True)
    assert rows.ascend_builtin_reasons(call) == ["q has length 4 and k 9, and it needs them equal"]
    assert rows.ascend_reasons(call) == []
    in_graph = contract.Signature(**{**vars(signature()), "graph": True})
    assert rows.ascend_builtin_reasons(in_graph) == [
        "it runs in PyNative mode only, and this call is compiled into a graph"
    ]


def test_the_package_is_looked_for_where_mindspore_will(
    on_ascend: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert rows.ascend_reasons(signature()) == [MISSING]
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "empty"))
    (reason,) = rows.ascend_reasons(signature())
    assert reason.startswith("the op AlibiAttention is not installed (looked in ")
    assert "csrc/ascend/build.sh" in reason

    unnamed = fake_cann.install(tmp_path / "unnamed", named=False)
    monkeypatch.setenv("ASCEND_OPP_PATH", unnamed)
    (reason,) = rows.ascend_reasons(signature())
    assert "load_priority in" in reason
    assert "does not name alibi" in reason
    # A folder given by name needs no config.ini.
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", f"/nowhere:{unnamed}/vendors/alibi")
    assert rows.ascend_reasons(signature()) == []
    monkeypatch.delenv("ASCEND_CUSTOM_OPP_PATH")
    # Under another vendor name, if config.ini says so.
    other = fake_cann.install(tmp_path / "other", vendor="customize")
    monkeypatch.setenv("ASCEND_OPP_PATH", other)
    assert rows.ascend_reasons(signature()) == []
    header = _cann.header_of("AlibiAttentionGrad")
    assert header == Path(other) / "vendors/customize/op_api/include/aclnn_alibi_attention_grad.h"
    header.unlink()
    (reason,) = rows.ascend_reasons(signature())
    assert reason.startswith("the op AlibiAttentionGrad is not installed")


def test_without_a_compiler(op_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert rows.ascend_reasons(signature()) == [
        "g++ is not on PATH, with which MindSpore connects to an op; install it"
    ]


def test_the_first_that_can_is_chosen_and_said_once(
    on_ascend: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO, "alibi_kernels")
    for _ in range(2):
        assert registry.select(signature()).name == "ascend_builtin"
    assert registry.select(signature(dtype="float32")).name == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        f"alibi_attention runs on backend ascend_builtin (not ascend: {MISSING})",
        f"alibi_attention runs on backend reference (not ascend: {MISSING}, dtype is float32, and "
        "it takes float16 and bfloat16; not ascend_builtin: dtype is float32, and it takes float16 "
        "and bfloat16)",
    ]
    with pytest.raises(RuntimeError, match='backend "ascend" cannot run this call: ASCEND_OPP'):
        registry.select(signature(backend="ascend"))
    caplog.clear()
    monkeypatch.setenv("ASCEND_OPP_PATH", fake_cann.install(tmp_path))
    assert registry.select(signature()).name == "ascend"
    monkeypatch.setenv("ALIBI_BACKEND", "ascend_builtin")
    assert registry.select(signature()).name == "ascend_builtin"
    assert not caplog.records
    lines = registry.explain_signature(signature()).splitlines()
    assert lines[2] == "ascend: not asked for (backend ascend_builtin is)"
    assert lines[3] == "ascend_builtin: runs it, as ops.speed_fusion_attention"


class _Vector(ctypes.Structure):
    """std::vector<void *>, as it is passed: by reference to three pointers."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("begin", "end", "capacity")]

    def __init__(self, pointers: list[int]) -> None:
        self.array = (ctypes.c_void_p * len(pointers))(*pointers)
        start = ctypes.addressof(self.array)
        super().__init__(
            start, start + ctypes.sizeof(self.array), start + ctypes.sizeof(self.array)
        )


@pytest.fixture
def real_custom(op_package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """MindSpore's own ops.Custom, told that the device target is Ascend."""
    from mindspore.ops.operations import custom_ops

    context = SimpleNamespace(
        get_context=lambda name: (
            "Ascend" if name == "device_target" else custom_context.get_context(name)
        )
    )
    custom_context = custom_ops.context
    monkeypatch.setattr(custom_ops, "context", context)
    monkeypatch.setattr(custom_ops.Custom, "compiled_bin", [])
    monkeypatch.chdir(tmp_path)  # the call-backs are compiled into it
    return custom_ops.Custom


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("name", fake_cann.definitions())
def test_mindspore_connects_to_an_op_as_we_call_it(
    ms: Any, real_custom: Any, name: str, sequence_first: bool
) -> None:
    """It reads the header and the description, and compiles a call-back that hands our positional
    operands to the op: a pointer per tensor, then the attributes as plain values."""
    op = ascend._op(name, sequence_first)
    assert isinstance(op, real_custom)
    entries = fake_cann.definitions()[name]
    inputs, outputs = len(entries["Input"]), len(entries["Output"])
    assert op.multi_output == (outputs > 1)
    types = ["aclTensor*"] * inputs + ["double", "bool", "bool", "bool"]
    assert op.get_attr_dict()["custom_inputs_type"] == types + ["aclTensor*"] * outputs

    path, _, symbol = op.get_attr_dict()["custom_callback_func"].partition(":")
    values = [ctypes.c_double(0.25), *(ctypes.c_bool(x) for x in (True, False, sequence_first))]
    tensors = list(range(1, inputs + 1)) + [ctypes.addressof(x) for x in values]
    pointer = ctypes.c_void_p
    seen: list[Any] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int,
        *[pointer] * inputs,
        *(ctypes.c_double, ctypes.c_bool, ctypes.c_bool, ctypes.c_bool),
        *[pointer] * (outputs + 2),
    )
    def workspace_size(*arguments: Any) -> int:
        seen.extend(arguments)
        return 0

    results = _Vector([100 + i for i in range(outputs)])
    call = getattr(ctypes.CDLL(path), f"{symbol}GetWorkSpaceSize")
    status = call(
        ctypes.cast(workspace_size, pointer),
        *(ctypes.byref(_Vector(tensors)), ctypes.byref(results)),
        *(pointer(7), pointer(8)),
    )
    assert status == 0
    wanted = [*range(1, inputs + 1), 0.25, True, False, sequence_first]
    assert seen == [*wanted, *(100 + i for i in range(outputs)), 7, 8]


@pytest.mark.parametrize("sequence_first", [False, True])
def test_shapes_and_types_are_inferred(ms: Any, real_custom: Any, sequence_first: bool) -> None:
    q, k = ([2, 7, 4, 16], [2, 9, 4, 16]) if sequence_first else ([2, 4, 7, 16], [2, 4, 9, 16])
    others = [[4], [2, 3], [2, 4, 1], [], [], [], []]
    forward = ascend._op("AlibiAttention", sequence_first)
    assert forward.out_shape(q, k, k, *others) == (q, (2, 4, 7))
    assert forward.out_dtype(ms.float16, *[None] * 9) == (ms.float16, ms.float32)
    backward = ascend._op("AlibiAttentionGrad", sequence_first)
    assert backward.out_shape(q, k, k, [4], [2, 4, 7], *others) == (q, k, k, [2, 4, 7])
    weights = ascend._op("AlibiAttentionWeights", sequence_first)
    assert weights.out_shape(q, k, *others) == (2, 4, 7, 9)
    gradient = ascend._op("AlibiAttentionWeightsGrad", sequence_first)
    assert gradient.out_shape(q, k, *[[2, 4, 7, 9]] * 2, *others) == (q, k, (2, 4, 7))


@pytest.fixture
def fusion(ms: Any, on_ascend: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """ops.speed_fusion_attention as its documentation has it, in plain operators; and its calls."""
    calls: list[dict[str, Any]] = []

    def attention(
        query: Any, key: Any, value: Any, head_num: int, input_layout: str, **options: Any
    ) -> Any:
        calls.append({"head_num": head_num, "input_layout": input_layout, **options})
        causal = options.get("sparse_mode", 0) == 2
        length = query.shape[2 if input_layout == "BNSD" else 1]
        if causal:
            mask = options["atten_mask"]
            assert mask.shape == (2048, 2048)
            hidden = np.triu(np.ones((length, length), bool), 1)
            np.testing.assert_array_equal(mask.asnumpy()[:length, :length], hidden)
        assert options["pse_type"] == 2
        assert options["pse"].dtype == ms.float32
        out, lse = alibi_kernels.alibi_attention(
            *(query, key, value, options["pse"]),
            scale=options["scale"],
            causal=causal,
            input_layout=input_layout,
            return_lse=True,
            backend="reference",
        )
        eight = (*lse.shape, 8)  # CANN stores each number of a row eight times
        top = (lse - 1.0).expand_dims(-1).broadcast_to(eight)
        total = ms.ops.full_like(top, np.e)
        return out, top, total, None, None, None, None

    monkeypatch.setattr(ms.ops, "speed_fusion_attention", attention)
    return calls


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_builtin_attention(ms: Any, fusion: Any, causal: bool, layout: str) -> None:
    q, k, v = (normal(ms, 1, 6, 6, 16, seed=i).astype(ms.float16) for i in range(3))
    options = {"causal": causal, "input_layout": layout}
    slopes = alibi_kernels.alibi_slopes(6)

    def loss(q: Any, k: Any, v: Any) -> Any:
        out, lse = alibi_kernels.alibi_attention(
            *(q, k, v, slopes), return_lse=True, backend="ascend_builtin", **options
        )
        return out.astype(ms.float32).sum(), out, lse

    (_, out, lse), grads = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    arrays = [x.asnumpy() for x in (q, k, v)]
    truth, want = oracle.attention(*arrays, slopes, **options)
    assert_close(out, truth, 2.0**-9)
    assert_close(lse, want, 2.0**-18)
    truths = oracle.attention_grad(*arrays, slopes, np.ones(q.shape), **options)
    for got, expected in zip(grads, truths[:3], strict=True):
        assert_close(got, expected, 2.0**-8 * np.abs(expected).max())
    assert fusion[0]["head_num"] == 6
    assert fusion[0]["input_layout"] == layout
    assert fusion[0]["scale"] == 0.25


def test_the_builtin_attention_refuses_a_gradient_through_lse(ms: Any, fusion: Any) -> None:
    q = normal(ms, 1, 2, 6, 16).astype(ms.float16)

    def loss(q: Any) -> Any:
        return alibi_kernels.alibi_attention(
            q, q, q, SLOPES, return_lse=True, backend="ascend_builtin"
        )[1].sum()

    assert np.isfinite(float(loss(q)))
    with pytest.raises(RuntimeError, match="ascend_builtin computes no gradient through lse"):
        ms.grad(loss)(q)


def test_the_builtin_attention_takes_packed_projections(ms: Any, fusion: Any) -> None:
    packed = normal(ms, 2, 9, 3, 2, 16).astype(ms.float16)
    out = alibi_kernels.alibi_attention_packed(packed, SLOPES, backend="ascend_builtin")
    want = alibi_kernels.alibi_attention_packed(packed, SLOPES, backend="reference")
    np.testing.assert_array_equal(out.asnumpy(), want.asnumpy())
    assert fusion[0]["input_layout"] == "BSND"
