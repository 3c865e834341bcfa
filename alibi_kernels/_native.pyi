"""The pybind11 module of csrc/python/native.cc; alibi_kernels.native is the public side."""

from typing import Any

class Call:
    def __init__(
        self,
        *,
        scale: float | None,
        causal: bool,
        signed_bias: bool,
        prune: bool,
        bsnd: bool,
        threads: int,
        isa: str | None,
    ) -> None: ...

# Each returns (status code, tiles_visited, tiles_allowed, decode_rows, tiles_scored); the arrays
# stand in the order of the C structs.
def attention_fwd(call: Call, *arrays: Any) -> tuple[int, ...]: ...
def attention_bwd(call: Call, *arrays: Any) -> tuple[int, ...]: ...
def weights_fwd(call: Call, *arrays: Any) -> tuple[int, ...]: ...
def weights_bwd(call: Call, *arrays: Any) -> tuple[int, ...]: ...
def status_name(status: int) -> str: ...
def build_info() -> str: ...
