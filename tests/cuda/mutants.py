"""Mistakes that the model must catch: each one is made in a copy of the sources, built and run.

    python -m tests.cuda.mutants            all of them, as a table
    python -m tests.cuda.mutants 7 12       some of them
    python -m tests.cuda.mutants --save     also into benchmarks/results/<machine>/cuda-mutants.csv

A mutant is caught when a result is wrong, when the model objects, or when the process dies at a
guard page. "equal" marks the ones that cannot change a result on the model; the table says why. One
that does not compile shows nothing: it is a mistake in the table.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import results
from tests.cases import Case
from tests.cuda import (
    mutants_hopper,
    mutants_hopper_backward,
    mutants_hopper_sums,
    mutants_portable,
)
from tests.cuda.checks import check
from tests.cuda.model import PRUNED, ROOT, Model, build_variant
from tests.cuda.mutant import UNITS, Mutant

FLAGS = ("-DALIBI_HEAD_DIMS_16=64,128", "-DALIBI_HEAD_DIMS_32=64", PRUNED)

CASES = (
    (Case("causal", 1, 2, 1, 150, 289, 64, slopes="learned"), "bfloat16"),
    (Case("spans", 2, 2, 2, 70, 200, 128, spans=((37, 190, 125), (0, 90, 20))), "float16"),
    (Case("full", 1, 4, 2, 133, 261, 40, causal=False, slopes="learned"), "float16"),
    (Case("signed", 1, 1, 1, 65, 129, 64, causal=False, bias="signed"), "float32"),
    (Case("causal-signed", 1, 1, 1, 100, 100, 64, bias="signed"), "float16"),
    (Case("one-more-key", 1, 1, 1, 128, 129, 64), "float16"),
    (Case("steep", 1, 2, 1, 64, 700, 64, slopes="steep"), "float16"),
    (
        Case("both-sides", 1, 4, 4, 64, 600, 64, causal=False, spans=((0, 600, 256),)),
        "float16",
    ),
    (Case("far-keys-win", 1, 2, 1, 64, 500, 64, slopes="learned", magnitude=8.0), "float32"),
    (Case("before", 1, 1, 1, 90, 60, 64, spans=((20, 55, 0),)), "float16"),
)
# Forward only, on a GPU that is large for them.
SPLIT_CASES = (
    (Case("chunk", 2, 2, 1, 20, 700, 64, slopes="learned"), "float16"),
    (
        Case("rows-after-the-keys", 1, 1, 1, 22, 900, 64, spans=((0, 880, 3000),), slopes="steep"),
        "float32",
    ),
)
# Few rows, on a GPU of one multiprocessor and on a large one.
DECODE_CASES = (
    (Case("group", 2, 6, 2, 3, 700, 64, slopes="learned"), "float16"),
    (Case("spans", 1, 10, 2, 2, 300, 128, spans=((37, 290, 150),), layout="BSND"), "bfloat16"),
    (Case("both-sides", 1, 2, 1, 9, 900, 40, False, spans=((10, 890, 300),)), "float16"),
    (Case("steep", 1, 2, 1, 5, 900, 64, slopes="steep"), "float32"),
    (Case("far-keys-win", 1, 2, 1, 2, 500, 128, slopes="learned", magnitude=8.0), "float16"),
    (Case("signed", 1, 2, 1, 4, 200, 64, causal=False, bias="signed"), "float16"),
    (Case("before", 2, 2, 1, 6, 600, 64, spans=((400, 600, 0), (0, 0, 40))), "float16"),
)
SEEDS = (0, 4, 5)

MUTANTS = (
    *(mutants_portable.MUTANTS + mutants_hopper.MUTANTS),
    *(mutants_hopper_backward.MUTANTS + mutants_hopper_sums.MUTANTS),
)


def outcome(mutant: Mutant) -> str:
    """The first objection to a mutant; "" when it passes for right. CalledProcessError: it does not
    compile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        mutant.apply(folder / "csrc")
        library = build_variant(folder / "csrc", UNITS[mutant.part], FLAGS, folder)
        command = [sys.executable, "-m", "tests.cuda.mutants", "--run", str(library), mutant.part]
        try:
            run = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
            )
        except subprocess.TimeoutExpired:
            return "does not end"
    if run.returncode == 0:
        return ""
    lines = [line for line in run.stderr.splitlines() if "Error: " in line]
    text = lines[-1].split("Error: ", 1)[1].strip() if lines else f"process died ({run.returncode})"
    return text or "results differ"


def run_library(path: str, part: str) -> None:
    from tests.cuda.test_edges import (
        test_pruning_changes_the_slope_gradient_by_no_more_than_theorem_2_says,
    )
    from tests.cuda.test_model import test_what_no_row_may_see_may_hold_anything

    model = Model(Path(path))
    if part.startswith("hopper"):
        run_hopper(model, part.endswith("backward"))
        return
    if part == "decode":
        for seed in SEEDS:
            for case, dtype in DECODE_CASES:
                for size in (1, 40):
                    check(model, case, dtype, seed=seed, multiprocessors=size, parts=("forward",))
        test_what_no_row_may_see_may_hold_anything(model, "float16", 3)
        return
    parts = ("forward", "backward") if part == "backward" else (part,)
    for seed in SEEDS:
        for case, dtype in CASES:
            check(model, case, dtype, seed=seed, parts=parts)
    for case, dtype in SPLIT_CASES if part == "forward" else ():
        check(model, case, dtype, seed=1, multiprocessors=16, parts=parts)
    if part == "backward":
        test_pruning_changes_the_slope_gradient_by_no_more_than_theorem_2_says(model, "float16")
    if part != "weights":
        test_what_no_row_may_see_may_hold_anything(model, "float16", 20)


def run_hopper(model: Model, backward: bool) -> None:
    from tests.cuda import test_hopper

    model.capability = 90
    cases = mutants_hopper_backward.CASES if backward else mutants_hopper.CASES
    parts = ("forward", "backward")[: 1 + backward]
    sizes = (1, 3) if backward else (1,)  # with tasks of a head on several blocks, too
    for seed in mutants_hopper.SEEDS:
        for case, dtype in cases:
            for size in sizes:
                check(model, case, dtype, seed=seed, multiprocessors=size, parts=parts)
    test_hopper.test_unseen_values_may_hold_anything_at_both_ends(model, 64)
    test_hopper.test_the_far_key_that_outscores_the_near_ones_is_found(model)
    if backward:
        test_hopper.test_gradients_of_queries_may_lie_anywhere(model, 64)
        test_hopper.test_gradients_of_keys_that_lie_anywhere_come_from_the_portable_kernels(
            model, "dk"
        )


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--run"]:
        run_library(*arguments[1:])
        return 0
    save = "--save" in arguments
    chosen = [int(a) for a in arguments if a != "--save"] or range(len(MUTANTS))
    rows = []
    for i in chosen:
        mutant = MUTANTS[i]
        try:
            text = (outcome(mutant)[:110] or mutant.equal) or "MISSED"
        except subprocess.CalledProcessError:
            text = "DOES NOT COMPILE"
        rows.append({"mutant": i, "mistake": mutant.what, "outcome": text})
        print(f"| {i} | {mutant.what} | {text} |", flush=True)
    if save:
        print(f"written: {results.save('cuda-mutants', rows)}")
    return int(any(row["outcome"] in ("MISSED", "DOES NOT COMPILE") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
