"""Who is measured: our kernels, the pure-ops reference, and the public implementations that can
compute ALiBi on a CPU.

A provider turns a case and its inputs into a prepared call. Everything that a user does once
(conversion to the library's tensors, compilation, building a mask or bias) happens in `prepare`;
the call is what a model would do on every step. A provider that cannot run a case says why, and the
table prints the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cases import Case

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """A call ready to be timed. `outputs()` runs it and returns float32 arrays [B, H, S, D]: out,
    and in training dq, dk, dv.
    """

    run: Callable[[], object]
    outputs: Callable[[], Arrays]


@dataclass(frozen=True)
class Provider:
    """One row of the tables. `kind` is "ours", "reference", "peer" or "yardstick"; `note` says what
    it does about the bias.
    """

    name: str
    kind: str
    package: str
    prepare: Callable[[Case, Arrays], Prepared]
    unsupported: Callable[[Case], list[str]]
    note: str

    def reasons_against(self, case: Case) -> list[str]:
        """Why this provider cannot run `case`; empty when it can."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return [f"{self.package} cannot be imported: {error}"]
        return self.unsupported(case)

    @property
    def version(self) -> str:
        try:
            return str(getattr(importlib.import_module(self.package), "__version__", "?"))
        except ImportError:
            return "absent"


def all_providers() -> list[Provider]:
    """Every provider, ours first; the modules below import their libraries only when a case is
    prepared.
    """
    import providers_ours
    import providers_runtimes
    import providers_torch

    return [*providers_ours.PROVIDERS, *providers_runtimes.PROVIDERS, *providers_torch.PROVIDERS]
