"""Each planted defect of mutants.py must be caught; the few harmless ones must not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ascend import test_backward, test_forward, test_weights
from tests.ascend.device import KERNELS, Device, Fault, build, build_cached
from tests.ascend.mutants import PROBES, Mutant
from tests.ascend.mutants_backward import BACKWARD
from tests.ascend.mutants_forward import FORWARD
from tests.ascend.mutants_spans import SPANS
from tests.ascend.mutants_split import SPLIT
from tests.ascend.mutants_weights import WEIGHTS_BACKWARD, WEIGHTS_FORWARD


def name_of(mutant: Mutant) -> str:
    return mutant.name.replace(" ", "-")


def plant(mutant: Mutant, where: Path) -> Path:
    kernels = where / "ascend"
    shutil.copytree(KERNELS, kernels)
    path = kernels / mutant.file
    tokens = re.findall(r"\w+|[^\w\s]", mutant.old)
    pattern = re.compile(r"\s*".join(map(re.escape, tokens)))
    source = path.read_text()
    found = pattern.findall(source)
    assert len(found) == 1, f"{mutant.file} has changed ({len(found)} matches): update the mutant"
    path.write_text(pattern.sub(lambda _: mutant.new, source))
    return kernels


@pytest.mark.parametrize(
    "mutant", FORWARD + SPANS + SPLIT + BACKWARD + WEIGHTS_FORWARD + WEIGHTS_BACKWARD, ids=name_of
)
def test_mutants_fit_the_sources(mutant: Mutant, tmp_path: Path) -> None:
    plant(mutant, tmp_path)


def caught(check: Callable[[], None]) -> bool:
    try:
        check()
    except (Fault, AssertionError):
        return True
    return False


def judge(mutant: Mutant, tmp_path: Path, entry: str, check: Callable[..., None]) -> None:
    base = build_cached().parent
    library = build(plant(mutant, tmp_path), tmp_path / "build", [entry], ["float16"], base)
    device = Device(library)
    seen = (
        case.name
        for case in PROBES
        if caught(lambda case=case: check(device, case, "float16", range(5)))
    )
    first = next(seen, None)
    if mutant.harmless:
        assert first is None, f"caught by {first} although {mutant.harmless}"
    else:
        assert first is not None, "no probe notices"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", FORWARD + SPANS + SPLIT, ids=name_of)
def test_forward_mutant(mutant: Mutant, tmp_path: Path) -> None:
    judge(mutant, tmp_path, "alibi_attention", test_forward.check)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", BACKWARD, ids=name_of)
def test_backward_mutant(mutant: Mutant, tmp_path: Path) -> None:
    judge(mutant, tmp_path, "alibi_attention_grad", test_backward.check)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", WEIGHTS_FORWARD, ids=name_of)
def test_weights_mutant(mutant: Mutant, tmp_path: Path) -> None:
    judge(mutant, tmp_path, "alibi_attention_weights", test_weights.check_forward)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", WEIGHTS_BACKWARD, ids=name_of)
def test_weights_grad_mutant(mutant: Mutant, tmp_path: Path) -> None:
    judge(mutant, tmp_path, "alibi_attention_weights_grad", test_weights.check_backward)
