"""The Hopper kernels, executed on the CPU: unchanged sources, every mode, several schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cases import SHAPES, SMALL, Case, make_inputs
from tests.cuda import test_model
from tests.cuda.checks import check
from tests.cuda.model import QUICK, ROOT, Calls, Model, address, build_variant, tensor


def with_head_dim(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The same problems with head sizes that these kernels take."""
    sizes = (64, 128)
    return tuple(replace(case, D=sizes[i % 2]) for i, case in enumerate(cases))


ALL_MODES = with_head_dim(SMALL)

# Rings of two buffers go round twice, several query tiles, both head sizes, two key heads, ends of
# spans inside tiles, a query tile that sees nothing.
MANY_TILES = (
    Case("causal-D64", 1, 2, 1, 300, 700, 64, slopes="learned"),
    Case("spans-D128", 1, 4, 2, 140, 700, 128, spans=((37, 690, 555),), layout="BSND"),
    Case("full-D64", 1, 2, 2, 133, 650, 64, causal=False, slopes="learned"),
    Case("full-signed-D128", 1, 2, 1, 130, 600, 128, causal=False, bias="signed"),
    Case("half-sees-nothing-D64", 2, 1, 1, 300, 600, 64, spans=((150, 590, 0), (520, 600, 100))),
    Case("both-sides-D64", 1, 2, 1, 70, 600, 64, causal=False, spans=((0, 600, 130),)),
    Case("far-ahead-D128", 1, 1, 1, 40, 640, 128, spans=((130, 600, 9000),), slopes="mixed"),
    Case("negative-slopes-D64", 1, 2, 1, 130, 400, 64, slopes="negative"),
)

# What the backward kernel does besides: several tiles of keys that add to dq of the same rows, with
# more query heads than key heads; rows that no tile of keys reaches; spans that begin inside a tile
# of keys; more of one length than of the other.
BACKWARD = (
    Case("group-of-4-D64", 1, 4, 1, 140, 400, 64, slopes="learned"),
    Case("groups-of-3-D128", 2, 6, 2, 70, 270, 128, causal=False, slopes="mixed", layout="BSND"),
    Case("span-begins-inside-D64", 1, 2, 1, 150, 300, 64, spans=((70, 290, 100),)),
    Case("span-begins-inside-D128", 1, 2, 2, 140, 270, 128, False, spans=((190, 260, 110),)),
    Case("more-keys-D64", 1, 2, 1, 50, 530, 64, slopes="learned", spans=((0, 530, 300),)),
    Case("more-queries-D128", 1, 2, 1, 330, 130, 128, causal=False, slopes="learned"),
    Case("more-causal-queries-D64", 1, 2, 1, 300, 130, 64, spans=((0, 130, 20),)),
    Case("steep-D128", 1, 4, 2, 140, 520, 128, slopes="steep"),
)


def check_attention(
    hopper: Model, case: Case, dtype: str, seed: int = 0, prune: bool = True
) -> None:
    check(hopper, case, dtype, seed=seed, prune=prune, parts=("forward", "backward"))
    if case.Sq > 16:  # a forward pass of fewer rows is for the decoding kernel
        assert hopper.stats()["async_copies"] == 0, "a portable kernel ran"


@pytest.mark.parametrize("case", ALL_MODES[::3], ids=str)
def test_every_situation(hopper: Model, case: Case) -> None:
    check_attention(hopper, case, "bfloat16" if case.D == 64 else "float16", seed=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", MANY_TILES, ids=str)
def test_many_tiles_under_several_schedules(hopper: Model, case: Case, seed: int) -> None:
    check_attention(hopper, case, "float16" if seed % 2 else "bfloat16", seed, prune=seed != 1)
    assert hopper.stats()["wide_products"] > 0


@pytest.mark.parametrize("case", BACKWARD, ids=str)
def test_gradients_that_several_blocks_add_up(hopper: Model, case: Case) -> None:
    for seed, multiprocessors in ((0, 1), (3, 2), (4, 7)):
        parts = ("forward", "backward")
        dtype = "bfloat16" if seed == 3 else "float16"
        check(hopper, case, dtype, seed=seed, multiprocessors=multiprocessors, parts=parts)
        if multiprocessors == 1:  # a larger GPU would split the keys of so few rows
            assert hopper.stats()["async_copies"] == 0, "a portable kernel ran"


@pytest.mark.parametrize("case", BACKWARD[:2] + BACKWARD[7:], ids=str)
def test_gradients_are_the_same_in_every_bit(hopper: Model, case: Case) -> None:
    """Whoever comes first, and however many heads are in work: the order of additions is fixed."""
    calls = Calls(hopper, case, "float16", make_inputs(case, "float16"))
    calls.forward()
    runs = []
    for seed, multiprocessors in ((0, 1), (1, 3), (4, 8), (6, 132)):
        hopper.configure(seed, multiprocessors=multiprocessors)
        runs.append([y.copy() for y in calls.backward()])
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_gradients_of_rows_that_no_tile_of_keys_reaches_are_zero(
    hopper: Model, head_dim: int
) -> None:
    """Nobody has stored their sums, which start as NaN here, as does dq."""
    case = Case("unreached", 2, 2, 1, 300, 260, head_dim, spans=((150, 250, 0), (0, 260, 400)))
    calls = Calls(hopper, case, "bfloat16", make_inputs(case, "bfloat16"))
    calls.forward()
    dq, dk, dv, dslopes = (y.astype(np.float32) for y in calls.backward())
    assert not dq[0, :, :150].any()
    assert dq[0, :, 151:].any(axis=-1).all()
    assert dq[1].any(axis=-1).all()
    for grad in (dk, dv):
        assert not grad[0, :, :150].any()
        assert not grad[0, :, 250:].any()
        assert np.isfinite(grad).all()
    assert np.isfinite(dslopes).all()


def backward_into(hopper: Model, calls: Calls, want: list[Any], odd: str) -> list[Any]:
    """The backward pass of `calls`, which has given `want`, with the gradient `odd` in rows that
    lie an odd number of elements apart, with nothing written between them."""
    names = ("dq", "dk", "dv", "dslopes")
    every = {n: hopper.empty(y.shape, y.dtype) for n, y in zip(names, want, strict=True)}
    *outer, width = every[odd].shape
    wide = hopper.empty((*outer, width + 3), np.float16)
    grads = {n: tensor(address(every[n]), every[n].shape, "BNSD") for n in names[:3]}
    grads[odd] = tensor(address(wide) + 2, wide.shape, "BNSD")
    inputs = {
        name: tensor(address(x), x.shape, "BNSD")
        for name in ("q", "k", "v", "out", "dout")
        for x in [getattr(calls, name)]
    }
    rows = {name: address(getattr(calls, name)) for name in ("lse", "dlse")}
    rows["dslopes"] = address(every["dslopes"])
    hopper.configure(seed=3)
    hopper.call("alibi_attention_bwd", calls.problem, **inputs, **grads, **calls.modes, **rows)
    assert np.isnan(wide[..., 0]).all()
    assert np.isnan(wide[..., 1 + width :]).all()
    every[odd] = wide[..., 1 : 1 + width]
    return list(every.values())


@pytest.mark.parametrize("head_dim", [64, 128])
def test_gradients_of_queries_may_lie_anywhere(hopper: Model, head_dim: int) -> None:
    case = Case("odd", 1, 2, 1, 140, 300, head_dim)
    calls = Calls(hopper, case, "float16", make_inputs(case, "float16"))
    calls.forward()
    want = [y.copy() for y in calls.backward()]
    found = backward_into(hopper, calls, want, "dq")
    assert hopper.stats()["async_copies"] == 0, "a portable kernel ran"
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("odd", ["dk", "dv"])
def test_gradients_of_keys_that_lie_anywhere_come_from_the_portable_kernels(
    hopper: Model, odd: str
) -> None:
    """The Hopper kernel stores them 16 bytes at a time."""
    case = Case("odd", 1, 2, 1, 140, 300, 64)
    calls = Calls(hopper, case, "float16", make_inputs(case, "float16"))
    calls.forward()
    want = [y.copy() for y in calls.backward()]
    found = backward_into(hopper, calls, want, odd)
    assert hopper.stats()["boxes"] == 0
    for got, expected in zip(found, want, strict=True):
        # Two orders of addition, each rounded to float16 in the operands of its products.
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-3 * np.abs(expected).max())


@pytest.mark.parametrize("multiprocessors", [2, 3])
@pytest.mark.parametrize("prune", [True, False], ids=["tickets", "serpentine"])
@pytest.mark.parametrize("case", MANY_TILES[:2] + MANY_TILES[4:5], ids=str)
def test_blocks_share_the_tasks(
    hopper: Model, case: Case, prune: bool, multiprocessors: int
) -> None:
    """With pruning by tickets, else in fixed rounds."""
    case = replace(case, B=3, spans=case.spans[:1] * 3 if case.spans else None)
    parts = ("forward",)
    check(
        hopper, case, "float16", prune=prune, multiprocessors=multiprocessors, parts=parts, seed=3
    )
    assert hopper.stats()["async_copies"] == 0, "a portable kernel ran"


@pytest.mark.slow
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ALL_MODES + with_head_dim(SHAPES) + MANY_TILES, ids=str)
def test_all_cases_under_ten_schedules(hopper: Model, case: Case, dtype: str, prune: bool) -> None:
    for seed in range(10) if case.Sq * case.Sk < 300_000 else range(2):
        check_attention(hopper, case, dtype, seed, prune)


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda model: test_model.test_what_no_row_may_see_may_hold_anything(model, "float16", 20),
        test_model.test_results_do_not_depend_on_the_schedule,
        test_model.test_a_packed_projection_is_read_in_place,
    ],
    ids=["unseen", "deterministic", "packed"],
)
def test_what_holds_for_the_portable_kernels(hopper: Model, behaviour) -> None:  # type: ignore[no-untyped-def]
    behaviour(hopper)
    assert hopper.stats()["boxes"] > 0


@pytest.mark.parametrize("head_dim", [64, 128])
def test_unseen_values_may_hold_anything_at_both_ends(hopper: Model, head_dim: int) -> None:
    """Several tiles reach beyond the visible keys: at the end of the span, and at its beginning."""
    case = Case("ends", 1, 2, 1, 200, 600, head_dim, spans=((130, 430, 230),))
    x = make_inputs(case, "bfloat16")
    calls = Calls(hopper, case, "bfloat16", x)
    clean = [y.copy() for y in (*calls.forward(), *calls.backward())]
    for name in ("k", "v"):
        getattr(x, name)[:, :, 430:] = np.nan
        getattr(x, name)[:, :, :130] = np.inf
    calls = Calls(hopper, case, "bfloat16", x)
    for got, want in zip((*calls.forward(), *calls.backward()), clean, strict=True):
        np.testing.assert_array_equal(got, want)


def test_pruning_skips_most_tiles_and_changes_less_than_rounding(hopper: Model) -> None:
    """Slopes of 2 and more leave only the tiles next to the diagonal."""
    case = Case("pruned", 1, 2, 1, 128, 1700, 64, slopes="steep")
    x = make_inputs(case, "float16")
    work, results = [], []
    for prune in (False, True):
        hopper.configure()
        results.append(Calls(hopper, case, "float16", x, prune).forward())
        work.append(hopper.stats()["wide_products"])
    assert work[1] < work[0] / 4
    for pruned, dense in zip(*results, strict=True):
        unit = 2.0**-10 if pruned.ndim == 4 else 2.0**-22
        error = np.abs(pruned.astype(np.float64) - dense.astype(np.float64)).max()
        assert error <= unit * max(1.0, np.abs(dense).max())


@pytest.fixture(scope="module")
def released(library_of_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The library whose forward kernel prunes from as many keys on as the released one."""
    folder, more = tmp_path_factory.mktemp("released"), ("-UALIBI_HOPPER_DENSE_KEYS",)
    model = Model(build_variant(ROOT / "csrc", "sm90/forward.cu", QUICK, folder, more))
    model.capability = 90
    yield model
    model.release()


@pytest.mark.parametrize("keys", [1024, 1025])
def test_a_forward_over_few_keys_runs_dense(released: Model, keys: int) -> None:
    """The norms cost more than what they saved: on an H200 a pruned call at 1024 keys took 9 and
    21% more time than a dense one. The backward pass, whose work is more, is pruned as before."""
    case = Case("few-keys", 1, 2, 1, 64, keys, 64, slopes="steep")
    x = make_inputs(case, "float16")
    work, results = [], []
    for prune in (False, True):
        released.configure()
        calls = Calls(released, case, "float16", x, prune)
        results.append([y.copy() for y in calls.forward()])
        forward = released.stats()
        calls.backward()
        backward = released.stats()["wide_products"] - forward["wide_products"]
        work.append((forward["blocks"], forward["wide_products"], backward))
    assert work[1][2] < work[0][2]
    if keys > 1024:
        assert work[1][0] > work[0][0], "no norms were computed"
        assert work[1][1] < work[0][1] / 4
        return
    assert work[1][:2] == work[0][:2]
    for pruned, dense in zip(*results, strict=True):
        np.testing.assert_array_equal(pruned, dense)


def test_the_far_key_that_outscores_the_near_ones_is_found(hopper: Model) -> None:
    """Key norms are part of the bound: one huge key at the far end must still be visited."""
    case = Case("far-key", 1, 1, 1, 64, 640, 64, slopes="steep")
    x = make_inputs(case, "bfloat16")
    query = x.q[0, 0, 5].astype(np.float32)
    x.k[0, 0, 0] = (40_000.0 * query / np.linalg.norm(query)).astype(x.k.dtype)
    dense, pruned = (Calls(hopper, case, "bfloat16", x, prune).forward() for prune in (False, True))
    np.testing.assert_array_equal(pruned[0], dense[0])
    np.testing.assert_array_equal(pruned[0][0, 0, 5], x.v[0, 0, 0])  # it attends to that key alone


ELSEWHERE = Case("elsewhere", 1, 2, 1, 70, 130, 64)


@pytest.mark.parametrize(
    ("case", "dtype", "multiprocessors"),
    [
        (ELSEWHERE, "float32", 1),
        (replace(ELSEWHERE, D=96), "float16", 1),
        (replace(ELSEWHERE, D=40), "float16", 1),
        (replace(ELSEWHERE, Sq=3, Sk=700), "float16", 64),  # keys split over several blocks
    ],
    ids=["float32", "D96", "D40", "split"],
)
def test_other_calls_run_on_the_portable_kernels(
    hopper: Model, case: Case, dtype: str, multiprocessors: int
) -> None:
    check(hopper, case, dtype, multiprocessors=multiprocessors, parts=("forward",))
    assert hopper.stats()["boxes"] == 0
    assert hopper.stats()["async_copies"] > 0


@pytest.mark.parametrize(
    ("keys", "multiprocessors", "split"),
    [(1500, 64, True), (700, 64, False), (1500, 8, False)],
    ids=["many-tiles", "few-tiles", "small-gpu"],
)
def test_few_tasks_of_many_tiles_split_their_keys(
    hopper: Model, keys: int, multiprocessors: int, split: bool
) -> None:
    """Which the portable kernels do. With fewer tiles, or tasks for a quarter of the
    multiprocessors, the Hopper kernel is done sooner, although the others idle."""
    case = Case("few-tasks", 1, 2, 1, 40, keys, 64)
    check(hopper, case, "float16", multiprocessors=multiprocessors, parts=("forward",))
    assert (hopper.stats()["boxes"] == 0) == split


def test_a_stride_that_the_copy_engine_cannot_step_runs_on_the_portable_kernels(
    hopper: Model,
) -> None:
    """Keys shared by all batch items: stride 0."""
    case = Case("shared-keys", 2, 1, 1, 40, 150, 64)
    x = make_inputs(case, "float16")
    x.k[1], x.v[1] = x.k[0], x.v[0]
    calls = Calls(hopper, case, "float16", x)
    want = [y.copy() for y in calls.forward()]
    assert hopper.stats()["boxes"] > 0
    hopper.configure()
    every = {name: tensor(address(getattr(calls, name)), x.q.shape, "BNSD") for name in ("q",)}
    for name in ("k", "v"):
        every[name] = tensor(address(getattr(calls, name)), x.k.shape, "BNSD")
        every[name].stride_b = 0
    out, lse = hopper.empty(x.q.shape, x.q.dtype), hopper.empty(want[1].shape, np.float32)
    places = {"out": tensor(address(out), out.shape, "BNSD"), "lse": address(lse)}
    hopper.call("alibi_attention_fwd", calls.problem, **every, **calls.modes, **places)
    assert hopper.stats()["boxes"] == 0
    np.testing.assert_allclose(out.astype("f4"), want[0].astype("f4"), atol=2e-3)
    np.testing.assert_allclose(lse, want[1], atol=1e-5)


def test_a_gpu_that_is_newer_still_runs_the_portable_kernels(hopper: Model) -> None:
    """The instructions of sm_90a exist on 9.0 only."""
    hopper.capability = 100
    check(hopper, ELSEWHERE, "float16", parts=("forward",))
    assert hopper.stats()["boxes"] == 0
