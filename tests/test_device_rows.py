"""The `cuda` row without a GPU: the way of calling on the CPU kernels, and the library itself.

A kernel library that reads device memory takes fixed slopes as a constant operand. Which memory
that is, the bridge never asks, so the CPU library called in this way runs every line but the
kernels. The rows of Ascend are in test_ascend_rows.py.
"""

# No `from __future__ import annotations`: mixed precision O1 rewrites classes of a module.

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import _library, contract, custom, ops, registry, rows
from tests import oracle
from tests.cases import SITUATIONS, SMALL
from tests.compare import assert_close_when_small
from tests.cuda.model import QUICK, Model, build
from tests.custom_tools import ROOT, normal, run_python
from tests.test_custom_gradients import second_order
from tests.test_custom_modes import check
from tests.test_custom_training import check_slopes_keep_their_digits

MODES = tuple(case for case in SMALL if case not in SITUATIONS)
SLOPES = (0.5, 0.125)


@pytest.fixture
def cuda(ms, monkeypatch):
    """A row named cuda that calls the CPU kernels as build_cuda calls those of the GPU."""
    reasons = rows.cpu_reasons(signature())
    if reasons:
        pytest.skip("the CPU kernels: " + "; ".join(reasons))
    made = []

    def build(signature, slopes):
        made.append(slopes)
        library = _library.load("cpu")
        return custom.build(library, signature, slopes, rows.build_reference, on_device=True)

    row = next(row for row in registry.BACKENDS if row.name == "cuda")
    stand_in = replace(row, not_supported_reasons=lambda _: [], build=build)
    table = [stand_in if r is row else r for r in registry.BACKENDS]
    monkeypatch.setattr(registry, "BACKENDS", tuple(table))
    ops._cached_plan.cache_clear()
    yield "cuda"
    ops._cached_plan.cache_clear()
    assert made, "the test never reached the row"


def signature(dtype="float32", **options):
    x = contract.Spec((1, 2, 4, 8), dtype)
    slopes = contract.Spec((2,), "float32")
    return contract.validate_attention(x, x, x, slopes, fixed_slopes=True, **options)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", MODES[::3], ids=str)
def test_against_the_oracle(ms, cuda, case, graph):
    """Trained slopes, as for every other row."""
    check(ms, case, "float32", cuda, ms.jit if graph else (lambda f: f))


@pytest.mark.parametrize("with_spans", [False, True])
def test_fixed_slopes_are_a_constant_operand(ms, cuda, mode, with_spans):
    q, k, v = (normal(ms, 1, 2, 11, 8, seed=i) for i in range(3))
    spans = np.array([[2, 10, 1]], np.int32) if with_spans else None

    def loss(q, k, v):
        out, lse = alibi_kernels.alibi_attention(
            *(q, k, v, SLOPES),
            spans=None if spans is None else ms.Tensor(spans),
            return_lse=True,
            backend=cuda,
        )
        return out.sum() + ms.ops.where(lse == -float("inf"), 0.0, lse).sum()

    grads = mode(ms.grad(loss, (0, 1, 2)))(q, k, v)
    arrays = [x.asnumpy() for x in (q, k, v)]
    slopes = np.array(SLOPES, np.float32)
    _, lse = oracle.attention(*arrays, slopes, spans=spans)
    ones, dlse = np.ones(q.shape), np.where(np.isfinite(lse), 1.0, 0.0)
    want = oracle.attention_grad(*arrays, slopes, ones, dlse, spans=spans)
    assert len(grads) == 3
    for name, got, expected in zip(("dq", "dk", "dv"), grads, want[:3], strict=True):
        assert_close_when_small(got, expected, name)


def test_the_kernel_computes_no_gradient_for_fixed_slopes(ms, cuda, monkeypatch):
    """The backward has one output less, so that the kernel is given no place for it."""
    outputs = []
    call = custom.Operator.__call__

    def counting(self, *operands):
        results = call(self, *operands)
        outputs.append((len(operands), len(results)))
        return results

    monkeypatch.setattr(custom.Operator, "__call__", counting)
    q = normal(ms, 1, 2, 5, 8)

    def loss(q, slopes):
        return alibi_kernels.alibi_attention(q, q, q, slopes, backend=cuda).sum()

    ms.grad(loss)(q, SLOPES)
    assert outputs == [(4, 2), (8, 3)]
    outputs.clear()
    ms.grad(loss, (0, 1))(q, ms.Tensor(np.array(SLOPES, np.float32)))
    assert outputs == [(4, 2), (8, 4)]


def test_key_norms_stay_behind(ms, cuda, mode):
    """Its kernels read every key: norms are no operand, and a call that has some is the same."""
    q, k = normal(ms, 1, 2, 1, 8), normal(ms, 1, 2, 300, 8)
    norms = alibi_kernels.key_norms(k) * 0.0  # by these, the CPU kernels would leave keys out

    def attend(norms):
        def op(q, k, norms):
            return alibi_kernels.alibi_attention(q, k, k, SLOPES, key_norms=norms, backend=cuda)

        return mode(op)(q, k, norms)

    np.testing.assert_array_equal(attend(norms).asnumpy(), attend(None).asnumpy())


@pytest.mark.parametrize("op", ["alibi_attention_weights", "alibi_attention_packed"])
def test_the_other_operators(ms, cuda, mode, op):
    """Against the same kernels with slopes as an attribute: the same bits."""
    weight = normal(ms, 2, 2, 9, 9) if op == "alibi_attention_weights" else normal(ms, 2, 9, 2, 8)

    def gradient(backend):
        def weights(q, k):
            p = alibi_kernels.alibi_attention_weights(q, k, SLOPES, backend=backend)
            return (p * weight).sum()

        def packed(x):
            out = alibi_kernels.alibi_attention_packed(x, SLOPES, backend=backend)
            return (out * weight).sum()

        if op == "alibi_attention_weights":
            return ms.value_and_grad(weights, (0, 1))
        return ms.value_and_grad(packed, (0,))

    if op == "alibi_attention_weights":
        arguments = tuple(normal(ms, 2, 2, 9, 8, seed=i) for i in range(2))
    else:
        arguments = (normal(ms, 2, 9, 3, 2, 8),)
    value, grads = mode(gradient(cuda))(*arguments)
    want, want_grads = mode(gradient("cpu"))(*arguments)
    np.testing.assert_array_equal(value.asnumpy(), want.asnumpy())
    for x, y in zip(grads, want_grads, strict=True):
        np.testing.assert_array_equal(x.asnumpy(), y.asnumpy())


def test_one_compilation_serves_every_length(ms, cuda):
    class Net(ms.nn.Cell):
        def construct(self, q):
            return alibi_kernels.alibi_attention(q, q, q, SLOPES, backend=cuda)

    net = Net()
    net.set_inputs(ms.Tensor(shape=[None, 2, None, 8], dtype=ms.float32))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        got = {n: net(normal(ms, 1, 2, n, 8)).asnumpy() for n in (5, 17, 1)}
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    for n, out in got.items():
        x = normal(ms, 1, 2, n, 8).asnumpy()
        truth, _ = oracle.attention(x, x, x, np.array(SLOPES))
        assert_close_when_small(out, truth, f"length {n}")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["fixed", "trained"])
@pytest.mark.parametrize("level", ["O1", "O2", "O3", "to_float"])
def test_mixed_precision_keeps_slopes(ms, cuda, kind, level, graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_slopes_keep_their_digits(graph, kind, level, cuda)


def test_gradients_of_gradients_with_fixed_slopes(ms, cuda, mode):
    """Against those of the CPU row, which takes fixed slopes as an attribute."""
    q, weight = normal(ms, 1, 2, 5, 4), normal(ms, 1, 2, 5, 4, seed=1)

    def gradient(backend):
        def loss(q):
            out = alibi_kernels.alibi_attention(q, q, q, SLOPES, backend=backend)
            return (out * out * weight).sum()

        first = ms.grad(loss)

        def function_of_gradient(q):
            return (first(q) * weight).sum()

        return ms.grad(function_of_gradient)

    got, want = mode(gradient(cuda))(q), mode(gradient("cpu"))(q)
    assert_close_when_small(got, want)
    assert np.abs(want.asnumpy()).max() > 0.01


def test_gradients_of_gradients_with_trained_slopes(ms, cuda, mode):
    arguments = [normal(ms, 1, 2, 5, 4, seed=i) for i in range(3)]
    arguments.append(ms.Tensor(np.array(SLOPES, np.float32)))
    weight = normal(ms, 1, 2, 5, 4, seed=3)
    got = mode(second_order(ms, cuda, None, weight)[1])(*arguments)
    want = mode(second_order(ms, "cpu", None, weight)[1])(*arguments)
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        assert_close_when_small(x, y, f"operand {i}")


def test_the_gpu_library_says_why_it_cannot_run(ms, monkeypatch):
    """In a process of its own: where there is a GPU, the question starts the driver."""
    try:
        library = _library.load("cuda")
    except _library.LibraryError as error:
        pytest.skip(str(error))
    code = "from alibi_kernels import _library as l; print(l.device_error(l.load('cuda')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    error = done.stdout.strip()
    if not error:
        pytest.skip("there is a GPU")
    assert error.startswith("cudaGetDevice: ")
    monkeypatch.setattr(rows, "device_target", lambda: "GPU")
    monkeypatch.setattr(_library, "device_error", lambda asked, _: error * (asked is library))
    assert rows.cuda_reasons(signature()) == [f"the library cannot use the GPU ({error})"]
    monkeypatch.setattr(_library, "device_error", lambda *_: "")
    assert rows.cuda_reasons(signature()) == []
    assert registry.select(signature()).name == "cuda"
    assert "cuda: runs it, as cuda-sm" in registry.explain_signature(signature())


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [
        (75, "float16", None),
        (75, "bfloat16", r"compute capability 7\.5, and bfloat16 needs 8\.0 or later; use float16"),
        (86, "bfloat16", None),
        (70, "float16", r'compute capability 7\.0, .* built for 7\.5 and later; use backend "ref'),
    ],
)
def test_what_the_row_says_of_an_old_gpu(ms, monkeypatch, capability, dtype, said):
    """The library is the CPU model of a GPU: entry.cu is asked as in the real one."""
    if shutil.which("g++") is None:
        pytest.skip("the CPU model of the CUDA kernels needs g++")
    model = Model(build(flags=QUICK))
    model.capability = capability
    model.configure()
    library = _library.Library("cuda", str(model.path), {"architectures": [750, 800, 900]})
    monkeypatch.setattr(rows, "device_target", lambda: "GPU")
    monkeypatch.setattr(_library, "load", lambda name: library)
    reasons = rows.cuda_reasons(signature(dtype))
    if said is None:
        assert reasons == []
    else:
        (reason,) = reasons
        assert re.match(rf"the library cannot use the GPU \(this GPU has {said}", reason)


# Calls the GPU kernels on the device CPU, whose memory they could not read.
_CALL = """
import mindspore as ms, numpy as np
from alibi_kernels import _library, contract, rows

ms.set_device("CPU")
spec = contract.Spec((1, 2, 4, 8), "float32")
slopes = contract.Spec((2,), "float32")
call = contract.validate_attention(spec, spec, spec, slopes, fixed_slopes=True)
q = ms.Tensor(np.ones((1, 2, 4, 8), np.float32))
try:
    rows.build_cuda(call, (0.5, 0.25))((q, q, q), None, None, None)[0].asnumpy()
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_the_bridge_in_the_gpu_library(ms, tmp_path):
    """MindSpore finds its symbols, and an error of CUDA arrives in words."""
    try:
        _library.load("cuda")
    except _library.LibraryError as error:
        pytest.skip(str(error))
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU, which would read host memory")
    script = tmp_path / "script.py"
    script.write_text(_CALL)
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip().splitlines()[-1]
    assert 'alibi_attention: status "device": the accelerator reported an error' in line
    assert "(cudaGetDevice: " in line


def test_the_driver_is_left_alone_where_mindspore_uses_no_gpu(ms, monkeypatch):
    def start(*_):
        raise AssertionError("asked for the device")

    monkeypatch.setattr(_library, "device_error", start)
    reasons = rows.cuda_reasons(signature())
    assert "it runs on device GPU, but the device is CPU" in reasons
