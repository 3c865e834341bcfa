"""What the contract accepts, remembers, leaves open, and shares with the C header.

What it rejects, and in which words, is in test_contract_messages.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi_kernels import alibi_slopes, contract
from alibi_kernels.contract import RULES, Options, Spec
from tests.cases import SMALL, make_inputs

HEADER = Path(__file__).parent.parent / "csrc" / "alibi_attention.h"

Q = Spec((2, 8, 100, 64), "float32")
K = Spec((2, 4, 120, 64), "float32")
SLOPES = Spec((8,), "float32")
SPANS = Spec((2, 3), "int32")
PACKED = Spec((2, 100, 3, 8, 64), "float32")


def attention(q: Spec = Q, k: Spec = K, v: Spec | None = None, **kwargs: Any) -> Any:
    """A valid call, unless an argument says otherwise; v is like k."""
    slopes, spans = kwargs.pop("slopes", SLOPES), kwargs.pop("spans", None)
    return contract.validate_attention(q, k, v or k, slopes, spans, **kwargs)


def weights(q: Spec = Q, k: Spec = K, **kwargs: Any) -> Any:
    return contract.validate_weights(q, k, SLOPES, **kwargs)


def packed(shape: Any = PACKED.shape, dtype: str = "float32", **kwargs: Any) -> Any:
    return contract.validate_packed(Spec(shape, dtype), SLOPES, **kwargs)


def reshaped(x: Spec, *shape: int | None) -> Spec:
    return Spec(shape, x.dtype)


def statuses() -> list[str]:
    enum = re.search(r"typedef enum AlibiStatus \{(.*?)\}", HEADER.read_text(), re.DOTALL)
    assert enum is not None
    names = re.findall(r'ALIBI_([A-Z_]+) = \d+, *// "([a-z_]+)"', enum[1])
    assert all(constant.lower() == name for constant, name in names)
    count = re.search(r"ALIBI_STATUS_COUNT = (\d+)", enum[1])
    assert count is not None
    assert len(names) == int(count[1]) - 1  # all but ALIBI_OK
    return [name for _, name in names]


def test_rules_and_status_codes_of_the_header_are_tied() -> None:
    """Each status code has a rule of its name, whose text stands alone; finer rules refine it."""
    names = statuses()
    assert [rule for rule in RULES if "." not in rule] == names
    for status in names:
        assert "{" not in RULES[status][1]
        text = str(contract.error(status, "alibi_attention"))
        assert text.startswith("alibi_attention: ")
        assert text.endswith(".")
    arguments = {*Options._fields, "tensor", "packed", "slopes", "order", "kind", "flag"}
    arguments |= {"num_heads", "max_bias", "array", "results", "threads", "start", "rows"}
    arguments |= {"epsilon", "key_norms", "norms"}
    prefixes = {rule.partition(".")[0] for rule in RULES if "." in rule}
    assert prefixes <= arguments | set(names)


def test_limits_of_the_header_and_of_python_agree() -> None:
    """C enums list dtypes and biases in the order of Python's names."""
    text = HEADER.read_text()
    for enum, names in (("AlibiDtype", contract.DTYPES), ("AlibiBias", contract.BIASES)):
        body = re.search(rf"typedef enum {enum} \{{(.*?)\}}", text, re.DOTALL)
        assert body is not None
        assert [n.lower() for n in re.findall(r"ALIBI_([A-Z0-9]+) = ", body[1])] == list(names)


def test_accepted_signature_holds_all_that_decides() -> None:
    sig = attention(spans=SPANS, scale=Fraction(1, 4), causal=False, bias="signed", prune=False)
    assert (sig.op, sig.dtype, sig.scale) == ("alibi_attention", "float32", 0.25)
    assert (sig.batch, sig.heads_q, sig.heads_kv) == (2, 8, 4)
    assert (sig.len_q, sig.len_k, sig.head_dim) == (100, 120, 64)
    assert (sig.causal, sig.bias, sig.prune, sig.spans) == (False, "signed", False, True)
    assert (sig.input_layout, sig.backend, sig.order) == ("BNSD", None, None)
    assert not sig.fixed_slopes
    assert isinstance(sig.scale, float)


def test_defaults() -> None:
    sig = attention()
    assert (sig.scale, sig.causal, sig.bias, sig.prune) == (0.125, True, "symmetric", True)
    assert not sig.spans


def test_layout_says_which_axis_is_which() -> None:
    q, k = reshaped(Q, 2, 100, 8, 64), reshaped(K, 2, 120, 4, 64)
    sig = attention(q, k, input_layout="BSND")
    assert (sig.heads_q, sig.heads_kv, sig.len_q, sig.len_k) == (8, 4, 100, 120)
    assert weights(q, k, input_layout="BSND").len_k == 120


@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_accepted_dtypes(dtype: str) -> None:
    assert attention(Spec(Q.shape, dtype), Spec(K.shape, dtype)).dtype == dtype


@pytest.mark.parametrize("backend", [None, *contract.BACKENDS])
def test_accepted_backends(backend: str | None) -> None:
    assert attention(backend=backend).backend == backend


@pytest.mark.parametrize("order", contract.ORDERS)
def test_accepted_packed(order: str) -> None:
    sig = packed(order=order)
    assert (sig.order, sig.input_layout) == (order, "BSND")
    assert (sig.batch, sig.len_q, sig.len_k, sig.heads_kv) == (2, 100, 100, 8)


def test_accepted_values() -> None:
    contract.validate_spans_values([(0, 0, 0), (9, 9, 1000), (3, 8, 0)], 9, causal=True)
    contract.validate_spans_values([(0, 9, -7)], 9, causal=False)
    contract.validate_slopes_values([0.0, -1.0, 3.4e38])
    assert contract.fixed_slopes(alibi_slopes(8)) == tuple(2.0**-i for i in range(1, 9))
    assert contract.fixed_slopes([1, Fraction(1, 2), np.float32(0.25)]) == (1.0, 0.5, 0.25)


def test_accepted_large_head_dim_and_empty_sizes() -> None:
    """Beyond the kernels' head_dim the reference takes over; empty tensors give empty results."""
    assert attention(reshaped(Q, 2, 8, 1, 512), reshaped(K, 2, 8, 1, 512)).head_dim == 512
    for batch, length in ((0, 5), (2, 0)):
        shape = (batch, 8, length, 64)
        assert attention(reshaped(Q, *shape), reshaped(K, *shape)).len_q == length


def test_more_queries_than_keys_need_spans_only_when_causal() -> None:
    long = reshaped(Q, 2, 8, 130, 64)
    assert attention(long, causal=False).len_q == 130
    assert attention(long, spans=SPANS).len_q == 130


@pytest.mark.parametrize("unknown", [None, -1])
def test_unknown_sizes_skip_the_rules_that_need_them(unknown: int | None) -> None:
    anything = Spec((unknown,) * 4, "float32")
    sig = attention(anything, anything, slopes=Spec((unknown,), "float32"))
    assert (sig.batch, sig.len_q, sig.head_dim, sig.scale) == (None, None, None, None)
    spans = Spec((unknown, 3), "int32")
    assert attention(Spec((unknown, 8, unknown, 64), "float32"), spans=spans).scale == 0.125
    assert packed((unknown, unknown, 3, 8, 64)).heads_q == 8
    with pytest.raises(ValueError, match="same head_dim"):
        attention(Spec((unknown, 8, unknown, 32), "float32"))
    with pytest.raises(ValueError, match=r"slopes must have shape \(8,\)"):
        attention(slopes=Spec((unknown, 1), "float32"))


def test_unknown_rank_is_accepted() -> None:
    rankless = Spec((-2,), "float32")
    assert attention(rankless, rankless, slopes=rankless).batch is None
    assert packed((-2,)).heads_q is None
    assert attention(spans=Spec((-2,), "int32")).spans


def test_a_call_is_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = attention(scale=0.3)
    monkeypatch.setattr(contract, "_check_options", None)
    assert attention(scale=0.3) is first


def test_remembered_calls_do_not_hide_other_types() -> None:
    """1 == True, so a cache that ignored types would let causal=1 pass after causal=True."""
    assert attention(causal=True, scale=0.7).causal
    with pytest.raises(TypeError, match="causal must be True or False"):
        attention(causal=1, scale=0.7)


def test_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="windw"):
        attention(windw=3)


def test_spec_of_arrays() -> None:
    x = make_inputs(SMALL[0], "bfloat16")
    assert contract.spec(x.q) == Spec(x.q.shape, "bfloat16")
    assert contract.spec(x.slopes).dtype == "float32"


def test_spec_of_tensors(ms: Any) -> None:
    for name in contract.DTYPES:
        tensor = ms.Tensor(np.zeros((2, 3), np.float32)).astype(getattr(ms, name))
        assert contract.spec(tensor) == Spec((2, 3), name)
    assert contract.dtype_name(ms.int32) == "int32"


def test_contract_needs_only_the_standard_library() -> None:
    code = "import sys, alibi_kernels.contract; print({'numpy', 'mindspore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
