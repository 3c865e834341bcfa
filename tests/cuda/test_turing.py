"""The tiles of sm_75, on the CPU model of a GPU of compute capability 7.5: those that tile_config.h
has for it alone, and those that it shares."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import SHAPES, SITUATIONS, SMALL, Case, make_dp, make_inputs
from tests.cuda.checks import check
from tests.cuda.model import QUICK, ROOT, WIDE, Calls, Model, build_variant
from tests.cuda.mutant import UNITS, Mutant

# Several tiles each way, at a head size with a row of its own and at one without.
CASES = (
    (Case("causal-spans-D96", 1, 2, 1, 130, 200, 96, spans=((3, 190, 60),)), "float16"),
    (Case("full-D128", 1, 2, 1, 70, 101, 128, causal=False, slopes="learned"), "float32"),
    (Case("causal-D64", 1, 2, 1, 70, 150, 64, layout="BSND"), "float16"),
)
SPLIT = Case("decode-D128", 1, 2, 1, 3, 700, 128, slopes="learned")
WIDE_CASES = (
    Case("causal-D256", 1, 2, 1, 50, 90, 256, slopes="learned"),
    Case("full-spans-D200", 1, 1, 1, 41, 70, 200, causal=False, spans=((5, 61, 9),)),
)


@pytest.fixture
def wide_turing(library_of_wide_model: Model) -> Iterator[Model]:
    library_of_wide_model.capability = 75
    yield library_of_wide_model
    library_of_wide_model.capability = 80


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)
def test_the_tiles_of_turing(turing: Model, case: Case, dtype: str) -> None:
    check(turing, case, dtype, seed=1)


def test_keys_split_over_several_blocks(turing: Model) -> None:
    check(turing, SPLIT, "float16", seed=2, multiprocessors=16, parts=("forward",))
    assert turing.stats()["blocks"] > 4


def test_turing_and_ampere_differ_in_their_blocks(turing: Model) -> None:
    """Head size 96 has 64 rows a block on one and 128 on the other."""
    case = Case("rows", 1, 1, 1, 128, 64, 96, causal=False)
    blocks = {}
    for turing.capability in (75, 80):
        turing.configure()
        calls = Calls(turing, case, "float16", make_inputs(case, "float16"), prune=False)
        calls.forward()
        blocks[turing.capability] = turing.stats()["blocks"]
    assert blocks == {75: 2, 80: 1}


def test_bfloat16_is_refused(turing: Model) -> None:
    case = SITUATIONS[0]
    calls = Calls(turing, case, "bfloat16", make_inputs(case, "bfloat16"))
    said = "this GPU has compute capability 7.5, and bfloat16 needs 8.0 or later"
    calls.out, calls.lse = calls.q, calls.dlse
    calls.p = calls.model.empty((case.B, case.Hq, case.Sq, case.Sk), calls.type)
    dp = make_dp(case, "bfloat16")
    for run in (
        calls.forward,
        calls.backward,
        calls.weights,
        lambda: calls.weights_backward(dp),
    ):
        with pytest.raises(RuntimeError, match=f"returned unsupported: {said}"):
            run()
    assert turing.stats()["blocks"] == 0


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [
        (75, "float16", ""),
        (75, "bfloat16", "this GPU has compute capability 7.5, and bfloat16 needs 8.0 or later"),
        (80, "bfloat16", ""),
        (121, "bfloat16", ""),
        (70, "float16", "this GPU has compute capability 7.0, and the library was built for 7.5"),
        (61, "float32", 'use backend "reference", or a GPU of 7.5 or later'),
    ],
)
def test_which_gpu_can_be_used(turing: Model, capability: int, dtype: str, said: str) -> None:
    turing.capability = capability
    turing.configure()
    assert turing.device_error(dtype).count(said) == 1 if said else not turing.device_error(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", SMALL[::4] + SHAPES, ids=str)
def test_all_cases(turing: Model, wide_turing: Model, case: Case, dtype: str) -> None:
    for seed in range(2):
        check(wide_turing if case.D > 128 else turing, case, dtype, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_the_widest_heads(wide_turing: Model, case: Case, dtype: str) -> None:
    for seed in range(3):
        check(wide_turing, case, dtype, seed=seed)
    check(wide_turing, case, dtype, seed=3, multiprocessors=16, parts=("forward",))


MUTANTS = (
    (
        Mutant("the host takes the other tiles", "tile_config.h", "major < 8 ?", "major < 7 ?"),
        QUICK,
        CASES[0],
    ),
    (
        Mutant(
            "a row of Turing is not its own",
            "sm80/forward.cuh",
            "kWalkTile<T, D, kSplit, kTuring>.gpu",
            "kAmpere",
        ),
        QUICK,
        CASES[0],
    ),
    (
        Mutant(
            "a narrow block copies its first strip again",
            "sm80/tile.cuh",
            "piece0 + thread % kAcross",
            "thread % kAcross",
            part="backward",
        ),
        WIDE,
        (WIDE_CASES[0], "float32"),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "flags", "run"), MUTANTS, ids=lambda x: getattr(x, "what", ""))
def test_mutant_is_caught(
    mutant: Mutant, flags: tuple[str, ...], run: tuple[Case, str], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    mutant.apply(tmp_path / "csrc")
    model = Model(build_variant(tmp_path / "csrc", UNITS[mutant.part], flags, tmp_path))
    model.capability = 75
    parts = ("forward", "backward")[: 1 + (mutant.part == "backward")]
    with pytest.raises((AssertionError, RuntimeError)):
        check(model, *run, seed=1, parts=parts)
