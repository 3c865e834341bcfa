"""The model catches mistakes: every mutant of the kernels must fail where the kernels pass."""

from __future__ import annotations

import pytest

from tests.cuda.model import ROOT
from tests.cuda.mutant import UNITS
from tests.cuda.mutants import MUTANTS, Mutant, outcome


def test_every_mutant_is_a_mistake_of_its_own() -> None:
    """What it replaces is still in the sources, and no two of them make the same."""
    texts = [(mutant.part, mutant.file, mutant.text(ROOT / "csrc")) for mutant in MUTANTS]
    assert len(set(texts)) == len(texts)
    assert len({(mutant.part, mutant.what) for mutant in MUTANTS}) == len(MUTANTS)
    for mutant, (_, file, text) in zip(MUTANTS, texts, strict=True):
        assert text != (ROOT / "csrc" / "cuda" / file).read_text(), mutant.what


@pytest.mark.slow
@pytest.mark.parametrize("part", UNITS)
def test_the_kernels_pass(part: str) -> None:
    assert outcome(Mutant("nothing", UNITS[part], "#include", "#include", part=part)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant) -> None:
    found = outcome(mutant)
    assert bool(found) != bool(mutant.equal), found or "the mutant passes for right"
