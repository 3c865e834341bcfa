"""The suites: cases, who runs them, and what they are checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import layouts
import models
import overhead
from cases import DECODE, SUITES, Case
from providers import Provider, all_providers
from providers_ours import COMPARED
from tables import OURS, PLAIN_READ, PRUNED
from truth import Truth
from truth_model import ModelTruth

MEMORY_CASE = Case("forward", 1, 8, 8192, 8192, 64)
# Who is followed to lengths where a call takes a minute: ours, and the peers that are ever best.
_OURS_AND_BEST = (OURS, PRUNED, "OpenVINO PagedAttention")
_DECODING = ("alibi-kernels pruned, norms kept", "ggml flash_attn_ext")
GROWTH = {"growth": _OURS_AND_BEST, "growth-decode": (*_OURS_AND_BEST, PLAIN_READ, *_DECODING)}
# In the order of their worth, should a run be cut short; the others follow.
FIRST = (
    "forward",
    "training",
    "decode",
    "decode-grouped",
    "grouped",
    "padded",
    "small",
    "threads",
    "layouts",
    "overhead",
    "layer",
    "models",
    "memory",
)
# Beyond this length one call that reads every key takes half a minute.
LONGEST_DENSE = 32768


@dataclass(frozen=True)
class Suite:
    """Cases, who runs them, and what they are checked against."""

    cases: Sequence[Case]
    providers: list[Provider]
    truth: Callable[..., Truth | ModelTruth] = Truth
    calls: int = 1  # in a timed run; times are per call
    timed: bool = True
    # Whether the peak of each provider is measured, in a fresh process.
    memory: Callable[[Case], bool] = lambda case: False

    def weight(self, case: Case) -> float:
        """Seconds that the case deserves, roughly: a setting-up and some calls of every provider
        that can run it, ten where they are short, and for memory two more in a new process.
        """
        able = sum(not p.reasons_against(case) for p in self.providers)
        call = case.cache_bytes / 1e10 if case.mode == DECODE else case.flops / 5e10
        timing, memory = 2 + min(10 * call, 5 + call), 8 + 2 * call
        return 0.5 + able * (timing * self.timed + memory * self.memory(case))


def _bounded(provider: Provider) -> Provider:
    """`provider`, without the squares that take too long: all but the pruned one stop there."""

    def unsupported(case: Case) -> list[str]:
        reasons = provider.unsupported(case)
        if case.queries > LONGEST_DENSE and provider.name != PRUNED:
            reasons = [*reasons, f"beyond {LONGEST_DENSE} a call takes half a minute"]
        return reasons

    return replace(provider, unsupported=unsupported)


def all_suites(quick: bool = False) -> dict[str, Suite]:
    """Every suite by name, in the order they run; `quick` has the same with small cases."""
    providers = all_providers()
    suites = {
        **{
            name: Suite(
                cases,
                [_bounded(p) for p in providers if p.name in GROWTH[name]]
                if name in GROWTH
                else providers,
            )
            for name, cases in SUITES.items()
        },
        **{name: Suite(SUITES[name], [*providers, other]) for name, other in COMPARED.items()},
        "layouts": Suite(layouts.CASES, layouts.PROVIDERS),
        "overhead": Suite(overhead.CASES, overhead.PROVIDERS, calls=overhead.CALLS),
        "layer": Suite(models.LAYER_CASES, models.LAYER_PROVIDERS, ModelTruth),
        "models": Suite(
            models.CASES, models.model_providers(), ModelTruth, memory=lambda case: True
        ),
        "memory": Suite(
            [MEMORY_CASE],
            [p for p in providers if p.kind != "yardstick"],
            timed=False,
            memory=lambda case: True,
        ),
    }
    ordered = {name: suites[name] for name in [*FIRST, *suites]}
    if not quick:
        return ordered
    return {n: replace(s, cases=unique(map(small, s.cases))) for n, s in ordered.items()}


def small(case: Case) -> Case:
    """The case on a problem of milliseconds: for a rehearsal, not for numbers."""
    keys = min(case.keys, 320)
    heads = min(case.heads, 8)
    changes = {"queries": min(case.queries, keys), "keys": keys, "heads": heads}
    changes["heads_kv"] = case.heads_kv and heads // case.group
    if case.lengths is not None:
        changes["lengths"] = tuple(n * keys // case.keys for n in case.lengths[:2])
    if isinstance(case, models.ModelCase):
        changes["layers"] = min(case.layers, 2)
    return replace(case, batch=min(case.batch, 2), **changes)


def unique(cases: Sequence[Case]) -> list[Case]:
    return list({case.name: case for case in cases}.values())
