"""`python -m alibi_kernels.info`: what is installed here, and what would run a given call.

python -m alibi_kernels.info
python -m alibi_kernels.info --shape 1,8,512,32 --dtype float16
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata

from alibi_kernels import _cann, _library, contract, layer_ops, registry

_PACKAGES = ("alibi-kernels", "mindspore", "numpy", "ml_dtypes")
# backend -> (tool that builds it, where else to look, how it states its version)
_TOOLCHAINS = {
    "CUDA": ("nvcc", "CUDA_HOME", ("--version",)),
    "Ascend": ("atc", "ASCEND_HOME_PATH", ("--help",)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report. Returns 0, or 2 when the call described by the options is not valid."""
    options = _parser().parse_args(arguments)
    for line in (*_versions(), *_libraries(), *_toolchains()):
        print(line)
    if options.shape is None:
        return 0
    try:
        signature = _signature(options)
        verdict = registry.explain_signature(signature)
    except (TypeError, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    others = layer_ops.explain_dtype(options.dtype)
    for title, text in (
        (_call(signature), verdict),
        (f"layer_norm and bias_gelu, {options.dtype}:", others),
    ):
        print(f"\n{title}", *text.splitlines(), sep="\n  ")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alibi_kernels.info",
        description="Versions, kernel libraries, toolchains; with --shape, what would run a call.",
    )
    parser.add_argument("--shape", type=_sizes, metavar="B,H,S,D", help="batch, query heads, "
                        "query length, head_dim")  # fmt: skip
    parser.add_argument("--kv-heads", type=int, help="key/value heads (default: as the queries)")
    parser.add_argument("--kv-length", type=int, help="key length (default: as the queries)")
    parser.add_argument("--dtype", choices=contract.DTYPES, default="float32")
    parser.add_argument("--full", action="store_true", help="not causal")
    parser.add_argument("--bias", choices=contract.BIASES, default="symmetric")
    parser.add_argument("--weights", action="store_true", help="alibi_attention_weights")
    parser.add_argument("--backend", choices=contract.BACKENDS, help="insist on one")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 4 or min(sizes) < 0:
        raise argparse.ArgumentTypeError(f"expected four sizes such as 1,8,512,32, got {text!r}")
    return sizes


def _signature(options: argparse.Namespace) -> contract.Signature:
    batch, heads, length, head_dim = options.shape
    kv_heads = heads if options.kv_heads is None else options.kv_heads
    kv_length = length if options.kv_length is None else options.kv_length
    q = contract.Spec((batch, heads, length, head_dim), options.dtype)
    k = contract.Spec((batch, kv_heads, kv_length, head_dim), options.dtype)
    slopes = contract.Spec((heads,), "float32")
    others = {"causal": not options.full, "bias": options.bias, "backend": options.backend}
    if options.weights:
        return contract.validate_weights(q, k, slopes, fixed_slopes=True, **others)
    return contract.validate_attention(q, k, k, slopes, fixed_slopes=True, **others)


def _call(signature: contract.Signature) -> str:
    s = signature
    return (
        f"{s.op}, {s.dtype}, q [{s.batch}, {s.heads_q}, {s.len_q}, {s.head_dim}], "
        f"k [{s.batch}, {s.heads_kv}, {s.len_k}, {s.head_dim}], "
        f"{'causal' if s.causal else 'not causal'}, {s.bias}:"
    )


def _versions() -> Iterable[str]:
    yield f"python        {platform.python_version()} on {platform.machine()}"
    for package in _PACKAGES:
        try:
            yield f"{package:<13} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{package:<13} not installed"  # ours, too, may run from a bare checkout
    for name in ("ALIBI_BACKEND", "ALIBI_CPU_ISA"):
        yield f"{name:<13} {os.environ.get(name) or 'not set'}"


def _libraries() -> Iterable[str]:
    yield ""
    for name in (row.library for row in registry.BACKENDS if row.library):
        try:
            library = _library.load(name)
        except _library.LibraryError as error:
            yield f"{name} library: none ({error})"
            continue
        build = library.build
        yield f"{name} library: {library.path}"
        yield f"  built with {build['compiler']}, ABI version {build['abi']}"
        if "isas" in build:
            isas = ", ".join(f"{isa['name']} ({_state(isa)})" for isa in build["isas"])
            yield f"  instruction sets: {isas}"
            yield f"  chosen: {build['selected'] or 'none'}; threads: {build['threads']}"
        if "architectures" in build:
            yield f"  GPU architectures: {', '.join(map(str, build['architectures']))}"
            problem = _library.device_error(library)
            yield f"  GPU: {f'none that it can use ({problem})' if problem else 'available'}"
    try:
        yield f"ascend op package: {_cann.header_of('AlibiAttention').parents[2]}"
    except _cann.PackageError as missing:
        yield f"ascend op package: none ({missing})"


def _state(isa: dict[str, bool]) -> str:
    if not isa["built"]:
        return "not built"
    return "available" if isa["supported"] else "not on this CPU"


def _toolchains() -> Iterable[str]:
    for name, (tool, variable, version) in _TOOLCHAINS.items():
        home = os.environ.get(variable)
        path = shutil.which(tool) or (home and shutil.which(tool, path=os.path.join(home, "bin")))
        if not path:
            yield f"{name} toolchain: none ({tool} is not on PATH, nor under {variable})"
        else:
            yield f"{name} toolchain: {path}{_version_of(path, version)}"


def _version_of(path: str, arguments: Sequence[str]) -> str:
    """ ", release ..." when the tool says so."""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if "release" in line]
    return f" ({lines[0]})" if lines else ""


if __name__ == "__main__":
    sys.exit(main())
