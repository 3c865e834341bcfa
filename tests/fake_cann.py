"""A CANN installation for tests: its files, and stand-ins for what runs on the device.

`install` writes what CANN's build leaves of csrc/ascend: a C header and a JSON description per op,
generated here from the same source, csrc/ascend/op_host/*_def.cpp. The stand-ins compute what the
device would, in NumPy and float64, from operands that they name as that source does; MindSpore runs
them as operators of type "pyfunc", which infer shapes and types like the real ones.
"""

# No annotations: MindSpore compiles these cells.

import json
import re

import numpy as np
from mindspore import nn, ops

from tests.custom_tools import ROOT

CUSTOM = ops.Custom  # before a test replaces it
TILE = 128  # query rows that share a reach
DEFINITIONS = sorted((ROOT / "csrc" / "ascend" / "op_host").glob("*_def.cpp"))
_CPP_TYPES = {"Float": "double", "Bool": "bool", "Int": "int64_t"}
_ENTRY = re.compile(
    r"for \(const char\* \w+ : \{(?P<names>[^}]*)\}\)\s*(?P<kind>Input|Output)\(\w+\)\s*"
    r"\.ParamType\((?P<need>\w+)\)\s*\.DataType\((?P<type>\w+)\)"
    r'|(?P<kind1>Input|Output)\("(?P<name>\w+)"\)\s*'
    r"\.ParamType\((?P<need1>\w+)\)\s*\.DataType\((?P<type1>\w+)\)"
    r'|Attr\("(?P<attribute>\w+)"\)\s*\.AttrType\((?P<need2>\w+)\)\s*\.(?P<type2>\w+)\(',
)


def definitions():
    """op -> {"Input": [(name, optional, type)], "Attr": [...], "Output": [...]}, in order."""
    found = {}
    for path in DEFINITIONS:
        source = re.sub(r"//.*", "", path.read_text())
        for body in source.split("class ")[1:]:
            op = body.split(" ", 1)[0]
            entries = found[op] = {"Input": [], "Attr": [], "Output": []}
            for m in _ENTRY.finditer(body):
                kind = m["kind"] or m["kind1"] or "Attr"
                names = re.findall(r'"(\w+)"', m["names"]) if m["names"] else None
                optional = (m["need"] or m["need1"] or m["need2"]) == "OPTIONAL"
                declared = m["type"] or m["type1"] or m["type2"]
                for name in names or [m["name"] or m["attribute"]]:
                    entries[kind].append((name, optional, declared))
            written = len(re.findall(r"\b(?:Input|Output|Attr)\(\"", body))
            loops = re.findall(r"for \(const char", body)
            assert written + len(loops) == len(_ENTRY.findall(body)), f"{op}: an entry was not read"
    return found


def operand_names(op):
    """What the op takes by position: inputs, then attributes."""
    entries = definitions()[op]
    return [name for kind in ("Input", "Attr") for name, _, _ in entries[kind]]


def install(root, vendor="alibi", named=True, soc=""):
    """CANN under `root`, with our op package; returns the value of ASCEND_OPP_PATH."""
    opp = root / "opp"
    package = opp / "vendors" / vendor
    headers, config = package / "op_api" / "include", package / "op_impl" / "ai_core" / "tbe"
    config = config / "config" / soc
    for folder in (headers, config, root / "include" / "acl", opp / "built-in"):
        folder.mkdir(parents=True)
    (root / "include" / "acl" / "acl_base.h").write_text("#include <cstdint>\n")
    (opp / "vendors" / "config.ini").write_text(f"load_priority={vendor if named else ''}\n")
    for op, entries in definitions().items():
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op).lower()
        (headers / f"aclnn_{snake}.h").write_text(_header(op, entries))
    described = {op: _description(entries) for op, entries in definitions().items()}
    (config / f"aic-{soc}-ops-info.json").write_text(json.dumps(described))
    return str(opp)


def _header(op, entries):
    arguments = [
        f"const aclTensor *{name}{'Optional' if optional else ''}"
        for name, optional, _ in entries["Input"]
    ]
    arguments += [f"{_CPP_TYPES[type_]} {name}" for name, _, type_ in entries["Attr"]]
    arguments += [f"const aclTensor *{name}Out" for name, _, _ in entries["Output"]]
    arguments += ["uint64_t *workspaceSize", "aclOpExecutor **executor"]
    return f"aclnnStatus aclnn{op}GetWorkspaceSize(\n    {', '.join(arguments)});\n"


def _description(entries):
    json_types = {"kWorking": "float16,bfloat16", "kFloats": "float,float"}
    described = {}
    for kind in ("Input", "Output"):
        for i, (name, optional, type_) in enumerate(entries[kind]):
            described[f"{kind.lower()}{i}"] = {
                "name": name,
                "paramType": "optional" if optional else "required",
                "dtype": json_types.get(type_, "int32,int32"),
                "format": "ND,ND",
            }
    described["attr"] = {"list": ",".join(name for name, _, _ in entries["Attr"])}
    for name, optional, type_ in entries["Attr"]:
        described[f"attr_{name}"] = {
            "paramType": "optional" if optional else "required",
            "type": type_.lower(),
            "value": "all",
        }
    return described


def _problem(q, k, slopes, spans, reach, attributes):
    """(scores [B, Hq, Sq, Sk], d bias / d slope, q, k) in float64; scores are -inf where a key is
    not allowed, or beyond the reach. A kernel keeps at least that much: it keeps whole tiles."""
    scale, causal, symmetric, sequence_first = attributes.tolist()
    q = _rows(q, sequence_first)
    k = _keys(k, q.shape[1], sequence_first)
    start, end, first = (spans[:, n].reshape(-1, 1, 1, 1).astype(np.int64) for n in range(3))
    p = first + np.arange(q.shape[2])[:, None]
    j = np.arange(k.shape[2])
    allowed = (j >= start) & (j < end) & ((j <= p) | (not causal))
    r = np.repeat(reach, TILE, axis=2)[:, :, : q.shape[2], None].astype(np.int64)
    near = j >= np.minimum(p, end - 1) - r
    near &= (j <= np.maximum(p, start) + r) | (not symmetric)
    ramp = -abs(j - p) if symmetric else j - p
    s = scale * (q @ k.swapaxes(2, 3)) + slopes[:, None, None].astype(np.float64) * ramp
    return np.where(allowed & near, s, -np.inf), ramp, q, k


def _rows(x, sequence_first):
    x = x.astype(np.float64)
    return x.transpose(0, 2, 1, 3) if sequence_first else x


def _keys(x, heads, sequence_first):
    x = _rows(x, sequence_first)
    return np.repeat(x, heads // x.shape[1], axis=1)


def _packed(x, dtype):
    return np.ascontiguousarray(x.astype(dtype))


def _check_types(working, floats, integers):
    """The types that the definition allows; what mixed precision does to operands would show."""
    assert working[0].dtype == np.float16
    assert {x.dtype for x in working} == {working[0].dtype}
    assert {x.dtype for x in floats} <= {np.dtype(np.float32)}
    assert {x.dtype for x in integers} == {np.dtype(np.int32)}


def _forward(q, k, v, slopes, spans, reach, attributes):
    _check_types((q, k, v), (slopes,), (spans, reach))
    s, _, _, _ = _problem(q, k, slopes, spans, reach, attributes)
    sequence_first, dtype, heads = attributes[3], q.dtype, slopes.shape[0]
    with np.errstate(divide="ignore"):
        lse = np.logaddexp.reduce(s, axis=-1)
    p = np.exp(s - np.where(np.isinf(lse), 0, lse)[..., None])
    out = p @ _keys(v, heads, sequence_first)
    return _packed(_rows(out, sequence_first), dtype), _packed(lse, np.float32)


def _backward(q, k, v, slopes, lse, delta, dout, spans, reach, attributes):
    _check_types((q, k, v, dout), (slopes, lse, delta), (spans, reach))
    s, ramp, q64, k64 = _problem(q, k, slopes, spans, reach, attributes)
    scale, sequence_first, heads = attributes[0], attributes[3], slopes.shape[0]
    dout, v64 = _rows(dout, sequence_first), _keys(v, heads, sequence_first)
    p = np.exp(s - np.where(np.isinf(lse), 0, lse).astype(np.float64)[..., None])
    ds = p * (dout @ v64.swapaxes(2, 3) - delta[..., None])
    dk, dv = scale * (ds.swapaxes(2, 3) @ q64), p.swapaxes(2, 3) @ dout
    heads_kv = k.shape[2 if sequence_first else 1]
    group = (q.shape[0], heads_kv, heads // heads_kv, *dk.shape[2:])
    grads = (scale * (ds @ k64), *(x.reshape(group).sum(2) for x in (dk, dv)))
    rows = _packed((ds * ramp).sum(-1), np.float32)
    return (*(_packed(_rows(x, sequence_first), q.dtype) for x in grads), rows)


def _weights(q, k, slopes, spans, attributes):
    _check_types((q, k), (slopes,), (spans,))
    everything = np.full((q.shape[0], slopes.shape[0], 1), 1 << 30)
    len_q = q.shape[1 if attributes[3] else 2]
    everything = np.repeat(everything, -(-len_q // TILE), axis=2)
    s, _, _, _ = _problem(q, k, slopes, spans, everything, attributes)
    with np.errstate(divide="ignore"):
        lse = np.logaddexp.reduce(s, axis=-1)
    return _packed(np.exp(s - np.where(np.isinf(lse), 0, lse)[..., None]), q.dtype)


def _weights_backward(q, k, p, dp, spans, attributes):
    _check_types((q, k, p, dp), (), (spans,))
    scale, _, symmetric, sequence_first = attributes.tolist()
    q64 = _rows(q, sequence_first)
    batch, heads, len_q, _ = q64.shape
    k64 = _keys(k, heads, sequence_first)
    p, dp = p.astype(np.float64), dp.astype(np.float64)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    ahead = np.arange(k64.shape[2]) - (spans[:, 2, None, None] + np.arange(len_q)[:, None])
    ramp = (-abs(ahead) if symmetric else ahead)[:, None]
    dk = scale * (ds.swapaxes(2, 3) @ q64)
    heads_kv = k.shape[2 if sequence_first else 1]
    dk = dk.reshape(batch, heads_kv, heads // heads_kv, *dk.shape[2:]).sum(2)
    grads = (_packed(_rows(x, sequence_first), q.dtype) for x in (scale * (ds @ k64), dk))
    return (*grads, _packed((ds * ramp).sum(-1), np.float32))


class _StandIn(nn.Cell):
    """Made like `ops.Custom(name, out_shape, out_dtype, "aot")`, and called like it."""

    def __init__(self, compute, out_shape, out_dtype):
        super().__init__()
        self.compute = CUSTOM(compute, out_shape, out_dtype, "pyfunc")


def _as_tensor(scale, causal, symmetric, sequence_first):
    flags = (float(causal), float(symmetric), float(sequence_first))
    return ops.TupleToArray()((scale, *flags))


class AlibiAttention(_StandIn):
    """The forward op."""

    def __init__(self, out_shape, out_dtype):
        super().__init__(_forward, out_shape, out_dtype)

    def construct(self, q, k, v, slopes, spans, reach, scale, causal, symmetric, sequence_first):
        attributes = _as_tensor(scale, causal, symmetric, sequence_first)
        return self.compute(q, k, v, slopes, spans, reach, attributes)


class AlibiAttentionGrad(_StandIn):
    """The backward op: slope gradients per row."""

    def __init__(self, out_shape, out_dtype):
        super().__init__(_backward, out_shape, out_dtype)

    # fmt: off
    def construct(self, q, k, v, slopes, lse, delta, dout, spans, reach,
                  scale, causal, symmetric, sequence_first):
        # fmt: on
        attributes = _as_tensor(scale, causal, symmetric, sequence_first)
        return self.compute(q, k, v, slopes, lse, delta, dout, spans, reach, attributes)


class AlibiAttentionWeights(_StandIn):
    """The op of the weights."""

    def __init__(self, out_shape, out_dtype):
        super().__init__(_weights, out_shape, out_dtype)

    def construct(self, q, k, slopes, spans, scale, causal, symmetric, sequence_first):
        attributes = _as_tensor(scale, causal, symmetric, sequence_first)
        return self.compute(q, k, slopes, spans, attributes)


class AlibiAttentionWeightsGrad(_StandIn):
    """Its gradient: slope gradients per row."""

    def __init__(self, out_shape, out_dtype):
        super().__init__(_weights_backward, out_shape, out_dtype)

    def construct(self, q, k, p, dp, spans, scale, causal, symmetric, sequence_first):
        attributes = _as_tensor(scale, causal, symmetric, sequence_first)
        return self.compute(q, k, p, dp, spans, attributes)


_CELLS = (AlibiAttention, AlibiAttentionGrad, AlibiAttentionWeights, AlibiAttentionWeightsGrad)
STAND_INS = {f"aclnn{cell.__name__}": cell for cell in _CELLS}
