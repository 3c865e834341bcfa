"""The suites: cases, who runs them, and what they are checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import layouts
import models
import overhead
from cases import DECODE, SUITES, Case
from providers import Provider, all_providers
from truth import Truth
from truth_model import ModelTruth

MEMORY_CASE = Case("forward", 1, 8, 8192, 8192, 64)
# Who is followed to lengths where a call takes a minute: ours, and the peers that are ever best.
_OURS_AND_BEST = ("alibi-kernels dense", "alibi-kernels pruned", "OpenVINO PagedAttention")
_DECODING = ("alibi-kernels pruned, norms kept", "ggml flash_attn_ext")
GROWTH = {"growth": _OURS_AND_BEST, "growth-decode": (*_OURS_AND_BEST, *_DECODING)}


@dataclass(frozen=True)
class Suite:
    """Cases, who runs them, and what they are checked against."""

    cases: Sequence[Case]
    providers: list[Provider]
    truth: Callable[..., Truth | ModelTruth] = Truth
    calls: int = 1  # in a timed run; times are per call
    timed: bool = True
    memory: bool = False  # peak of each provider, in a fresh process

    def weight(self, case: Case) -> float:
        """Seconds that the case deserves, roughly: a setting-up and some calls of every provider
        that can run it, ten where they are short.
        """
        able = sum(not p.reasons_against(case) for p in self.providers)
        call = case.cache_bytes / 1e10 if case.mode == DECODE else case.flops / 5e10
        return 0.5 + able * ((2 + min(10 * call, 5 + call)) * self.timed + 8 * self.memory)


def all_suites(quick: bool = False) -> dict[str, Suite]:
    """Every suite by name, in the order they run; `quick` has the same with small cases."""
    providers = all_providers()
    suites = {
        **{
            name: Suite(cases, [p for p in providers if p.name in GROWTH.get(name, (p.name,))])
            for name, cases in SUITES.items()
        },
        "layouts": Suite(layouts.CASES, layouts.PROVIDERS),
        "overhead": Suite(overhead.CASES, overhead.PROVIDERS, calls=overhead.CALLS),
        "layer": Suite(models.LAYER_CASES, models.LAYER_PROVIDERS, ModelTruth),
        "models": Suite(models.CASES, models.model_providers(), ModelTruth, memory=True),
        "memory": Suite(
            [MEMORY_CASE],
            [p for p in providers if p.kind != "yardstick"],
            timed=False,
            memory=True,
        ),
    }
    if not quick:
        return suites
    return {n: replace(s, cases=unique(map(small, s.cases))) for n, s in suites.items()}


def small(case: Case) -> Case:
    """The case on a problem of milliseconds: for a rehearsal, not for numbers."""
    keys = min(case.keys, 320)
    changes = {"queries": min(case.queries, keys), "keys": keys, "heads": min(case.heads, 8)}
    if isinstance(case, models.ModelCase):
        changes["layers"] = min(case.layers, 2)
    return replace(case, batch=min(case.batch, 2), **changes)


def unique(cases: Sequence[Case]) -> list[Case]:
    return list({case.name: case for case in cases}.values())
