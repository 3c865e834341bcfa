"""The model catches mistakes: every mutant of the kernels must fail where the kernels pass."""

from __future__ import annotations

import pytest

from tests.cuda.mutants import MUTANTS, Mutant, outcome


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant) -> None:
    found = outcome(mutant)
    assert bool(found) != bool(mutant.equal), found or "the mutant passes for right"
