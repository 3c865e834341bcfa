"""The public functions: what they accept, what they refuse, and that nothing ran before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import alibi_attention, alibi_attention_packed, alibi_attention_weights
from tests import oracle
from tests.compare import assert_close_when_small
from tests.custom_tools import normal, run_python

SLOPES = (0.5, 0.25)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if an error is raised only after something was built to run."""
    from alibi_kernels import registry

    def build(*_: Any) -> Any:
        raise AssertionError("a backend was asked to run a call that should have been refused")

    monkeypatch.setattr(registry, "plan", build)


def qkv(ms: Any, length: int = 6) -> tuple[Any, Any, Any]:
    q, k, v = (normal(ms, 1, 2, length, 4, seed=i) for i in range(3))
    return q, k, v


@pytest.mark.parametrize(
    "slopes",
    [SLOPES, list(SLOPES), np.array(SLOPES), np.array(SLOPES, np.float32), (np.float32(0.5), 0.25)],
    ids=["tuple", "list", "float64", "float32", "mixed"],
)
def test_forms_of_slopes(ms: Any, mode: Any, backend: str, slopes: Any) -> None:
    def op(q, k, v):  # type: ignore[no-untyped-def]
        return alibi_attention(q, k, v, slopes, backend=backend)

    q, k, v = qkv(ms)
    want = alibi_attention(q, k, v, ms.Tensor(np.array(SLOPES, np.float32)), backend=backend)
    np.testing.assert_array_equal(mode(op)(q, k, v).asnumpy(), want.asnumpy())


def test_alibi_slopes_as_an_attribute_of_a_cell(ms: Any, mode: Any, backend: str) -> None:
    class Net(ms.nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = alibi_kernels.alibi_slopes(2)

        def construct(self, q, k, v):  # type: ignore[no-untyped-def]
            return alibi_attention(q, k, v, self.slopes, backend=backend)

    q, k, v = qkv(ms)
    truth, _ = oracle.attention(*(x.asnumpy() for x in (q, k, v)), alibi_kernels.alibi_slopes(2))
    assert_close_when_small(mode(Net())(q, k, v), truth)


def test_return_lse(ms: Any, mode: Any, backend: str) -> None:
    def with_lse(q, k, v):  # type: ignore[no-untyped-def]
        return alibi_attention(q, k, v, SLOPES, return_lse=True, backend=backend)

    q, k, v = qkv(ms)
    out, lse = mode(with_lse)(q, k, v)
    want, want_lse = oracle.attention(*(x.asnumpy() for x in (q, k, v)), np.array(SLOPES))
    assert_close_when_small(out, want, "out")
    assert_close_when_small(lse, want_lse, "lse")
    assert isinstance(alibi_attention(q, k, v, SLOPES, backend=backend), ms.Tensor)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": [1.0]}, TypeError, "q must be a mindspore.Tensor, got [1.0] (list)"),
        ({"k": np.ones((1, 2, 6, 4))}, TypeError, "k must be a mindspore.Tensor, got a ndarray"),
        ({"k": (1, 2, 6, 8)}, ValueError, "k has head_dim 8 but q has 4"),
        ({"v": (1, 1, 6, 4)}, ValueError, "v has head count 1 but k has 2"),
        ({"q": (2, 6, 4)}, ValueError, "q must have 4 axes"),
        ({"slopes": (0.5,)}, ValueError, "slopes must have shape (2,)"),
        ({"slopes": 0.5}, TypeError, "slopes must be a float32 Tensor, or a flat list"),
        ({"slopes": np.ones((2, 1))}, TypeError, "got a ndarray of shape (2, 1)"),
        ({"slopes": (0.5, float("nan"))}, ValueError, "slopes[1] is nan"),
        ({"slopes": (0.5, "x")}, TypeError, "slopes must be a float32 Tensor, or a flat list"),
        ({"scale": "big"}, TypeError, "scale must be a real number or None"),
        ({"scale": float("inf")}, ValueError, "scale must be a finite float32 number"),
        ({"causal": 1}, TypeError, "causal must be True or False, got 1 (int)"),
        ({"prune": None}, TypeError, "prune must be True or False, got None"),
        ({"return_lse": 1}, TypeError, "return_lse must be True or False, got 1 (int)"),
        ({"bias": "up"}, ValueError, 'bias must be one of "symmetric", "signed"; got \'up\''),
        ({"input_layout": "SBND"}, ValueError, 'input_layout must be one of "BNSD", "BSND"'),
        ({"backend": "tpu"}, ValueError, "backend must be one of"),
        ({"spans": [[0, 6, 0]]}, TypeError, "spans must be a mindspore.Tensor"),
    ],
)
def test_bad_arguments(ms: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    q, k, v = qkv(ms)
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "slopes": SLOPES}
    for name, value in changes.items():
        is_shape = name in "qkv" and isinstance(value, tuple)
        arguments[name] = normal(ms, *value) if is_shape else value
    with pytest.raises(error) as caught:
        alibi_attention(**arguments)
    assert str(caught.value).startswith("alibi_attention: ")
    assert text in str(caught.value)


@pytest.mark.usefixtures("no_kernel")
def test_bad_dtypes(ms: Any) -> None:
    q, k, v = qkv(ms)
    with pytest.raises(TypeError, match="k has dtype float16 but q has float32"):
        alibi_attention(q, k.astype(ms.float16), v, SLOPES)
    with pytest.raises(TypeError, match="q has dtype float64"):
        alibi_attention(*(x.astype(ms.float64) for x in (q, k, v)), SLOPES)
    with pytest.raises(TypeError, match="slopes has dtype float16; it must be float32"):
        alibi_attention(q, k, v, ms.Tensor(np.array(SLOPES, np.float16)))
    with pytest.raises(TypeError, match="spans has dtype int64; it must be int32"):
        alibi_attention(q, k, v, SLOPES, spans=ms.Tensor(np.array([[0, 6, 0]])))


def test_values_are_checked_in_pynative_mode(ms: Any, backend: str) -> None:
    q, k, v = qkv(ms)
    for row, text in (
        ([0, 7, 0], r"spans\[0\] = \(0, 7, 0\)"),
        ([4, 3, 0], r"spans\[0\] = \(4, 3, 0\)"),
        ([0, 6, -1], "has q_start -1"),
    ):
        spans = ms.Tensor(np.array([row], np.int32))
        for op in (
            lambda s: alibi_attention(q, k, v, SLOPES, spans=s, backend=backend),
            lambda s: alibi_attention_weights(q, k, SLOPES, spans=s, backend=backend),
        ):
            with pytest.raises(ValueError, match=text):
                op(spans)
    slopes = ms.Tensor(np.array([0.5, np.inf], np.float32))
    with pytest.raises(ValueError, match=r"slopes\[1\] is inf"):
        alibi_attention(q, k, v, slopes, backend=backend)


_IN_A_GRAPH = """
import mindspore as ms
import numpy as np
from alibi_kernels import alibi_attention
from tests.custom_tools import normal, run_python

class Net(ms.nn.Cell):
    def construct(self, q, k, v, spans):
        return alibi_attention(q, k, v, (0.5, 0.25), spans=spans, backend="cpu")

ms.set_context(mode=ms.GRAPH_MODE)
net, dynamic = Net(), ms.Tensor(shape=[None, None, None, None], dtype=ms.float32)
net.set_inputs(dynamic, dynamic, dynamic, ms.Tensor(shape=[None, None], dtype=ms.int32))
q, k, v = (normal(ms, 1, 2, 6, 4, seed=i) for i in range(3))
spans = ms.Tensor(np.array([[0, 6, 0]], np.int32))
assert np.isfinite(net(q, k, v, spans).asnumpy()).all()
try:
    net({arguments}).asnumpy()
except RuntimeError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "q, k, v, spans + ms.Tensor(np.array([[0, 1, 0]], np.int32))",
            'alibi_attention: status "spans": each row (kv_start, kv_end, q_start)',
        ),
        (
            "q, k, normal(ms, 1, 2, 5, 4), spans",
            "alibi_attention: v must have shape (1, 2, 6, 4) to fit the other inputs, "
            "got (1, 2, 5, 4)",
        ),
    ],
    ids=["spans", "shape"],
)
def test_the_bridge_checks_what_a_graph_hides(
    ms: Any, backend: str, arguments: str, text: str, tmp_path: Path
) -> None:
    """Values of spans, and sizes on dynamic axes, are first known to the kernel: a wrong one would
    be read beyond its end. In a process of its own, because MindSpore runs nothing in a graph
    after a kernel has failed there."""
    script = tmp_path / "script.py"
    script.write_text(_IN_A_GRAPH.replace("{arguments}", arguments))
    done = run_python(script, tmp_path)
    assert "refused:" in done.stdout, done.stderr
    assert text in done.stdout


def test_errors_while_compiling_keep_type_and_text(
    ms: Any, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # MindSpore leaves a dump of the graph there

    def op(q, k, v):  # type: ignore[no-untyped-def]
        return alibi_attention(q, k, v, SLOPES, backend=backend)

    q, _, v = qkv(ms)
    with pytest.raises(ValueError, match="alibi_attention: k has head_dim 8 but q has 4"):
        ms.jit(op)(q, normal(ms, 1, 2, 6, 8), v)


def test_packed_arguments(ms: Any) -> None:
    packed = normal(ms, 1, 6, 3, 2, 4)
    with pytest.raises(ValueError, match="alibi_attention_packed: order must be one of"):
        alibi_attention_packed(packed, SLOPES, order="qqv")
    with pytest.raises(ValueError, match=r"packed must have shape \(batch, length, 3, heads"):
        alibi_attention_packed(normal(ms, 1, 6, 2, 2, 4), SLOPES)
    with pytest.raises(TypeError, match=r"packed must be a mindspore\.Tensor"):
        alibi_attention_packed(packed.asnumpy(), SLOPES)


def test_a_call_that_was_cached_is_still_checked(ms: Any) -> None:
    """1 == True, so a plan remembered for causal=True must not be found for causal=1."""
    q, k, v = qkv(ms)
    alibi_attention(q, k, v, SLOPES, causal=True)
    with pytest.raises(TypeError, match="causal must be True or False"):
        alibi_attention(q, k, v, SLOPES, causal=1)


def test_public_docstrings() -> None:
    for op in (alibi_attention, alibi_attention_packed, alibi_attention_weights):
        for part in ("Args:", "Returns:", "Raises:", "Supported Platforms:", "arXiv 2108.12409"):
            assert part in (op.__doc__ or ""), f"{op.__name__} lacks {part}"
