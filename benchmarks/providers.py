"""Who is measured: our kernels, the pure-ops reference, and the public implementations that can
compute ALiBi on a CPU.

A provider turns a case and its inputs into a prepared call. Everything that a user does once
(conversion to the library's tensors, compilation, building a mask or bias) happens in `prepare`;
the call is what a model would do on every step. A provider that cannot run a case says why, and the
table prints the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import Case

Arrays = dict[str, np.ndarray]

# Calls before the clock runs, of what MindSpore compiles: for some thirty launches of a graph it
# tries how many threads each of its kernels likes best.
SETTLING_CALLS = 36


@dataclass(frozen=True)
class Prepared:
    """A call ready to be timed. `outputs()` runs it and returns float32 arrays [B, H, S, D]: out,
    and in training dq, dk, dv. `kept()` is the share of the key tiles that pruning leaves.
    """

    run: Callable[[], object]
    outputs: Callable[[], Arrays]
    kept: Callable[[], float] | None = None


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
    settling_calls: int = 0  # before the clock runs
    unit: str | None = None  # the ceiling that it is held to, where that is not the case's own

    def reasons_against(self, case: Case) -> list[str]:
        """Why this provider cannot run `case`; empty when it can."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return [f"{self.package} cannot be imported: {error}"]
        return self.unsupported(case)

    @property
    def version(self) -> str:
        """Of the distribution: a submodule has the version of its package."""
        try:
            importlib.import_module(self.package)
            root = importlib.import_module(self.package.partition(".")[0])
        except ImportError:
            return "absent"
        return str(getattr(root, "__version__", "?"))


def finished(result: Any) -> Any:
    """`result`, a tensor of MindSpore or nested tuples of them, once it is there, uncopied."""
    if isinstance(result, tuple):
        for part in result:
            finished(part)
    else:
        # Not ms.runtime.synchronize(): its first call on the CPU does not wait.
        result.asnumpy()
    return result


@contextmanager
def graph_mode() -> Iterator[None]:
    """MindSpore's GRAPH_MODE, for a while: other providers of the process run in PyNative mode."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def as_cell(function: Callable[..., Any]) -> Any:
    """A Cell that computes `function`; called in GRAPH_MODE it is one graph."""
    import mindspore as ms

    class Computes(ms.nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.function = function

        def construct(self, *inputs: Any) -> Any:
            return self.function(*inputs)

    return Computes()


def in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled as a Cell in GRAPH_MODE: the thread that calls it runs its graph.

    Under ms.jit another thread runs the graph while the caller waits for it in a loop, which takes
    a core from the kernels (docs/design/0051). The switch of modes is part of what is timed; it is
    small beside the launch of a graph.
    """
    cell = as_cell(function)

    def call(*inputs: Any) -> Any:
        with graph_mode():
            return cell(*inputs)

    return call


def all_providers() -> list[Provider]:
    """Every provider, ours first; the modules below import their libraries only when a case is
    prepared.
    """
    import peers_ggml
    import providers_ours
    import providers_runtimes
    import providers_torch

    return [
        *providers_ours.PROVIDERS,
        *providers_runtimes.PROVIDERS,
        *peers_ggml.PROVIDERS,
        *providers_torch.PROVIDERS,
    ]
