"""The CUDA kernels, executed on the CPU: unchanged sources, every mode, several schedules."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cases import DTYPES, SHAPES, SITUATIONS, SMALL, Case, make_inputs
from tests.cuda.checks import check
from tests.cuda.model import Calls, Model, address, tensor

# Rings of tiles must go round twice, with several warps in play: four key tiles and more, odd
# lengths, two key heads, spans that cut both ends.
MANY_TILES = (
    Case("causal-D64", 1, 2, 1, 150, 289, 64, slopes="learned"),
    Case("causal-spans-D128", 1, 2, 2, 70, 200, 128, spans=((37, 190, 125),), layout="BSND"),
    Case("full-D32", 1, 2, 1, 133, 261, 32, causal=False, slopes="learned"),
    Case("full-signed-D96", 1, 1, 1, 65, 129, 96, causal=False, bias="signed"),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SITUATIONS[::2] + SMALL[::5], ids=str)
def test_every_situation(model: Model, case: Case, dtype: str) -> None:
    check(model, case, dtype)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", MANY_TILES, ids=str)
def test_many_tiles_under_several_schedules(model: Model, case: Case, seed: int) -> None:
    check(model, case, "bfloat16" if seed % 2 else "float16", seed=seed)


@pytest.mark.parametrize("case", MANY_TILES[::2], ids=str)
def test_many_tiles_in_float32(model: Model, case: Case) -> None:
    check(model, case, "float32", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES + MANY_TILES, ids=str)
def test_all_cases_under_ten_schedules(
    library_of_model: Model, library_of_wide_model: Model, case: Case, dtype: str
) -> None:
    model = library_of_wide_model if case.D > 128 else library_of_model
    for seed in range(10) if case.Sq * case.Sk < 40_000 else range(2):
        check(model, case, dtype, seed=seed)


SPLIT = (
    Case("chunk-D64", 2, 4, 2, 17, 700, 64, slopes="learned"),
    Case("chunk-spans-D128", 1, 2, 1, 70, 800, 128, spans=((30, 777, 650),), layout="BSND"),
    Case("full-D32", 1, 1, 1, 20, 900, 32, causal=False, slopes="mixed"),
    Case("steep-D40", 2, 2, 2, 23, 900, 40, slopes="steep"),
    Case("sees-nothing-D64", 2, 1, 1, 18, 600, 64, spans=((400, 600, 0), (0, 0, 40))),
    Case("both-sides-D64", 1, 1, 1, 19, 900, 64, False, spans=((10, 890, 300),), slopes="learned"),
)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_keys_split_over_several_blocks(model: Model, case: Case, dtype: str, prune: bool) -> None:
    """On a large GPU few query rows share the work over the keys; on a small one they do not."""
    check(model, case, dtype, seed=2, prune=prune, multiprocessors=16, parts=("forward",))
    split_blocks = model.stats()["blocks"]
    check(model, case, dtype, prune=prune, multiprocessors=1, parts=("forward",))
    assert split_blocks > model.stats()["blocks"]


def test_split_blocks_read_only_what_the_bound_leaves(model: Model) -> None:
    case = SPLIT[3]
    x = make_inputs(case, "float16")
    copies = []
    for prune in (False, True):
        model.configure(multiprocessors=16)
        Calls(model, case, "float16", x, prune).forward()
        copies.append(model.stats()["async_copies"])
    assert copies[1] < copies[0] / 2


DECODE = (
    Case("one-row-D128", 2, 2, 2, 1, 333, 128, slopes="learned"),
    Case("group-of-16-D64", 1, 16, 1, 1, 300, 64, layout="BSND"),
    Case("group-of-40-D32", 1, 40, 1, 1, 260, 32, slopes="learned"),
    Case("several-rows-D96", 1, 6, 2, 5, 150, 96, spans=((3, 140, 100),), slopes="mixed"),
    Case("signed-D64", 1, 2, 1, 4, 200, 64, causal=False, bias="signed"),
    Case("far-keys-win-D128", 1, 4, 2, 2, 400, 128, slopes="learned", magnitude=8.0),
    Case("no-keys-D64", 2, 2, 1, 3, 100, 64, spans=((100, 100, 40), (0, 7, 0))),
    Case("long-D64", 2, 4, 2, 1, 2200, 64, slopes="learned"),
    Case("sees-nothing-D64", 2, 1, 1, 6, 600, 64, spans=((400, 600, 0), (0, 0, 40))),
    Case("both-sides-D64", 1, 1, 1, 9, 2100, 64, False, spans=((10, 2090, 300),), slopes="learned"),
    Case("group-of-5-D128", 1, 10, 2, 4, 1100, 128, slopes="learned", layout="BSND"),
    Case("rows-after-the-keys-D96", 1, 4, 1, 7, 600, 96, spans=((5, 590, 2000),), slopes="steep"),
)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DECODE, ids=str)
def test_decoding(model: Model, case: Case, dtype: str, prune: bool) -> None:
    for seed, multiprocessors in ((0, 1), (3, 1), (4, 40)):
        check(
            model,
            case,
            dtype,
            seed=seed,
            prune=prune,
            multiprocessors=multiprocessors,
            parts=("forward",),
        )


@pytest.mark.parametrize("prune", [True, False])
def test_decoding_shares_the_keys_on_a_large_gpu(model: Model, prune: bool) -> None:
    case = DECODE[7]
    blocks = []
    for multiprocessors in (1, 40):
        check(
            model, case, "float16", prune=prune, multiprocessors=multiprocessors, parts=("forward",)
        )
        blocks.append(model.stats()["blocks"])
    assert blocks[0] < blocks[1]


def test_decoding_reads_keys_once_per_key_head(model: Model) -> None:
    """Not once per query head: a group of eight reads what a group of one does, but for Q."""
    copies = []
    for heads in (2, 16):
        case = Case("group", 1, heads, 2, 1, 640, 128)
        model.configure()
        Calls(model, case, "float16", make_inputs(case, "float16"), prune=False).forward()
        copies.append(model.stats()["async_copies"])
    assert copies[0] == copies[1]


def test_pruned_decoding_reads_values_only_where_they_count(model: Model) -> None:
    """And every key once: there is no pass for the norms, and a tile of keys for each warp."""
    case = Case("steep", 1, 2, 2, 1, 4096, 64, slopes="steep")
    x = make_inputs(case, "float16")
    copies = []
    for prune in (False, True):
        model.configure()
        Calls(model, case, "float16", x, prune).forward()
        copies.append(model.stats()["async_copies"])
    assert copies[0] / 2 < copies[1] < copies[0] * 0.55


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decoding_finds_the_far_key_that_outscores_the_near_ones(model: Model, dtype: str) -> None:
    case = Case("far-key", 1, 2, 1, 3, 640, 64, slopes="steep")
    x = make_inputs(case, dtype)
    x.k[0, 0, 0] = 40_000.0 / 64 * x.q[0, 0, 1] / np.linalg.norm(x.q[0, 0, 1].astype(np.float32))
    results = []
    for prune in (False, True):
        model.configure(multiprocessors=16)
        results.append(Calls(model, case, dtype, x, prune).forward()[0].copy())
    np.testing.assert_array_equal(results[0], results[1])


def test_results_of_decoding_do_not_depend_on_the_schedule(model: Model) -> None:
    case = DECODE[3]
    x = make_inputs(case, "float16")
    runs = []
    for seed in (0, 3, 4, 5):
        model.configure(seed, multiprocessors=16)
        runs.append([y.copy() for y in Calls(model, case, "float16", x).forward()])
        model.release()
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(got, want)


PRUNED = Case("pruned", 1, 2, 1, 64, 900, 64, slopes="steep")


def test_pruning_skips_most_tiles_and_changes_less_than_rounding(model: Model) -> None:
    """Slopes of 2 and more leave only the tiles next to the diagonal."""
    x = make_inputs(PRUNED, "float16")
    work, results = {}, {}
    for prune in (False, True):
        model.configure()
        calls = Calls(model, PRUNED, "float16", x, prune)
        forward = calls.forward()
        work[prune, "forward"] = model.stats()["multiplies"]
        results[prune] = [*forward, *calls.backward()]
        work[prune, "all"] = model.stats()["multiplies"]
    assert work[True, "forward"] < work[False, "forward"] / 4
    assert work[True, "all"] < work[False, "all"] / 4
    for pruned, dense in zip(results[True], results[False], strict=True):
        pruned, dense = pruned.astype(np.float64), dense.astype(np.float64)
        # 2^-24 of the result before it is rounded: at most one unit of the working dtype after.
        unit = 2.0**-10 if pruned.ndim == 4 else 2.0**-22
        assert np.abs(pruned - dense).max() <= unit * max(1.0, np.abs(dense).max())


@pytest.mark.parametrize(
    ("slopes", "causal", "bias"),
    [("zero", True, "symmetric"), ("negative", True, "symmetric"), ("steep", False, "signed")],
)
def test_nothing_is_pruned_where_the_bound_does_not_hold(
    model: Model, slopes: str, causal: bool, bias: str
) -> None:
    case = Case("unprunable", 1, 1, 1, 64, 320, 64, causal=causal, bias=bias, slopes=slopes)
    x = make_inputs(case, "float16")
    work = []
    for prune in (False, True):
        model.configure()
        Calls(model, case, "float16", x, prune).forward()
        work.append(model.stats()["multiplies"])
    assert work[0] == work[1]


def test_the_far_key_that_outscores_the_near_ones_is_found(model: Model) -> None:
    """Key norms are part of the bound: one huge key at the far end must still be visited."""
    case = Case("far-key", 1, 1, 1, 64, 640, 64, slopes="steep")
    x = make_inputs(case, "float32")
    x.k[0, 0, 0] = 40_000.0 * x.q[0, 0, 5] / np.linalg.norm(x.q[0, 0, 5])
    results = []
    for prune in (False, True):
        model.configure()
        results.append(Calls(model, case, "float32", x, prune).forward()[0].copy())
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0][0, 0, 5] - x.v[0, 0, 0]).max() < 1e-5  # that row attends to it alone


@pytest.mark.parametrize("rows", [20, 3])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_no_row_may_see_may_hold_anything(model: Model, dtype: str, rows: int) -> None:
    """A cache is not filled to its end: NaN behind kv_end and before kv_start stays there."""
    case = Case("cache", 1, 2, 1, rows, 150, 64, spans=((9, 120, 120 - rows),))
    x = make_inputs(case, dtype)
    calls = Calls(model, case, dtype, x)
    clean = [y.copy() for y in (*calls.forward(), *calls.backward())]
    for name in ("k", "v"):
        getattr(x, name)[:, :, 120:] = np.nan
        getattr(x, name)[:, :, :9] = np.nan
    calls = Calls(model, case, dtype, x)
    for got, want in zip((*calls.forward(), *calls.backward()), clean, strict=True):
        np.testing.assert_array_equal(got, want)


def test_results_do_not_depend_on_the_schedule(model: Model) -> None:
    """Every sum is made by one block in one order: bitwise equal, whoever runs first."""
    case = MANY_TILES[0]
    x = make_inputs(case, "float16")
    runs = []
    for seed in (0, 3, 4, 5):
        model.configure(seed)
        calls = Calls(model, case, "float16", x)
        runs.append([y.copy() for y in (*calls.forward(), *calls.backward())])
        model.release()
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_ldmatrix_has_no_bank_conflicts(model: Model) -> None:
    for case in MANY_TILES:
        calls = Calls(model, case, "float16", make_inputs(case, "float16"))
        calls.forward()
        calls.backward()
    assert model.stats()["multiplies"] > 0
    assert model.stats()["bank_conflicts"] == 0


def test_a_packed_projection_is_read_in_place(model: Model) -> None:
    """q, k and v as thirds of [B, S, 3, H, D]: only the strides differ, no copy is made."""
    case = Case("packed", 2, 2, 2, 70, 70, 64, layout="BSND")
    x = make_inputs(case, "float16")
    calls = Calls(model, case, "float16", x)
    want = [y.copy() for y in calls.forward()]
    packed = model.guarded(np.stack([x.k, x.q, x.v], axis=2))
    model.configure()
    thirds = {}
    for i, name in enumerate("kqv"):
        third = tensor(address(packed) + 2 * i * case.Hq * case.D, x.q.shape, "BSND")
        third.stride_b, third.stride_s = 3 * third.stride_b, 3 * third.stride_s
        thirds[name] = third
    out, lse = model.empty(x.q.shape, x.q.dtype), model.empty((2, 2, 70), np.float32)
    places = {"out": tensor(address(out), out.shape, "BSND"), "lse": address(lse)}
    model.call("alibi_attention_fwd", calls.problem, **thirds, **calls.modes, **places)
    np.testing.assert_array_equal(out, want[0])
    np.testing.assert_array_equal(lse, want[1])


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"len_q": -1}, "shape"),
        ({"len_k": 2**30 + 1}, "shape"),
        ({"heads_kv": 3}, "head_groups"),
        ({"head_dim": 257}, "head_dim"),
        ({"scale": float("inf")}, "scale"),
        ({"slopes": 0}, "null_pointer"),
    ],
)
def test_bad_arguments_return_a_status(model: Model, change: dict[str, float], status: str) -> None:
    case = SITUATIONS[0]
    calls = Calls(model, case, "float16", make_inputs(case, "float16"))
    modes = {**calls.modes, **{k: v for k, v in change.items() if k == "slopes"}}
    sizes = {k: v for k, v in change.items() if k != "slopes"}
    problem = type(calls.problem)(**{**vars(calls.problem), **sizes})
    one = tensor(address(calls.q), calls.q.shape, "BNSD")
    places = {"q": one, "k": one, "v": one, "out": one, "lse": address(calls.dlse)}
    assert model.status("alibi_attention_fwd", problem, **places, **modes) == status
    assert model.stats()["blocks"] == 0


@pytest.mark.parametrize(
    "sizes", [(0, 2, 2, 5, 5), (1, 2, 2, 0, 5), (1, 2, 2, 5, 0)], ids=["batch", "queries", "keys"]
)
def test_empty_sizes(model: Model, sizes: tuple[int, ...]) -> None:
    """Nothing to attend to: out 0, lse -inf, gradients 0, everything written."""
    case = Case("empty", *sizes, 32, causal=False)
    calls = Calls(model, case, "float16", make_inputs(case, "float16"))
    out, lse = calls.forward()
    assert not out.any()
    assert (lse == -np.inf).all()
    assert not any(gradient.any() for gradient in calls.backward())
