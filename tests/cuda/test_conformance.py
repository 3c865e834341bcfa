"""The CPU model against recorded GPU results, and whether that comparison can fail."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import conformance
from tests.cuda.conformance import Document, differences, words

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")


@pytest.fixture(scope="module")
def program() -> Path:
    if shutil.which("g++") is None:
        pytest.skip("the CPU model needs g++")
    return conformance.build_model("sm80")


@pytest.fixture(scope="module")
def model(program: Path) -> Document:
    return conformance.run(program)


def test_the_model_does_what_a_gpu_did(model: Document) -> None:
    document = json.loads((conformance.GOLDEN / "sm80.json").read_text())
    assert document["platform"] == "cuda"
    assert differences(model, document) == []


def test_what_a_hopper_gpu_did_is_what_arithmetic_says() -> None:
    document = json.loads((conformance.GOLDEN / "sm90.json").read_text())
    assert document["platform"] == "cuda"
    assert differences(document, conformance.arithmetic(document)) == []


def test_the_model_of_hopper_does_what_arithmetic_says() -> None:
    if not (conformance.SM90_HEADER.exists() and conformance.SM90_MODEL.exists()):
        pytest.skip("this version has no csrc/cuda/sm90, or no model of it")
    program = conformance.build_model("sm90")
    for seed in ("0", "1"):
        document = conformance.run(program, seed)
        every = {name for names in conformance.INSTRUCTIONS["sm90"].values() for name in names}
        assert document["probes"].keys() == every - {"barrier_phases"}
        assert differences(document, conformance.arithmetic(document)) == []


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_results_do_not_depend_on_the_schedule(program: Path, model: Document, seed: str) -> None:
    assert conformance.run(program, seed) == model


def test_every_word_of_a_probe_is_written(model: Document) -> None:
    for name, probe in model["probes"].items():
        assert "deadbeef" not in probe["out"], name


def test_integer_products_of_the_model_are_exact(model: Document) -> None:
    """From the registers of every lane to matrices and back, without the model's own code."""
    lane = np.arange(32)
    for dtype in ("float16", "bfloat16"):
        probe = model["probes"][f"product_{dtype}_exact"]
        kind = conformance.NUMPY_DTYPES[dtype]
        halves = words(probe["in"]).view(np.uint16).view(kind).astype(np.float64)
        registers = halves.reshape(6, 32, 2)
        a, b = np.zeros((16, 16)), np.zeros((16, 8))
        for i in range(4):
            for half in range(2):
                a[lane // 4 + 8 * (i % 2), 2 * (lane % 4) + half + 8 * (i // 2)] = registers[
                    i, :, half
                ]
        for i in range(2):
            for half in range(2):
                b[2 * (lane % 4) + half + 8 * i, lane // 4] = registers[4 + i, :, half]
        out = words(probe["out"]).view(np.float32).reshape(4, 32)
        start = np.stack([np.full(32, 1.0), np.full(32, -2.0), np.full(32, 3.0), lane])
        for e in range(4):
            want = (a @ b)[lane // 4 + 8 * (e // 2), 2 * (lane % 4) + e % 2] + start[e]
            np.testing.assert_array_equal(out[e], want)


def test_no_number_becomes_the_one_that_an_h200_made_of_it(model: Document) -> None:
    """cvt.f32.f16 forgets which NaN it was; from bfloat16 it is a shift."""
    for dtype, want in (("float16", "7fffffff"), ("bfloat16", "7fff0000")):
        probe = model["probes"][f"rounding_{dtype}"]
        lane = probe["in"].split().index("7fc00000")
        packed, low = (probe["out"].split()[32 * i + lane] for i in (0, 1))
        assert (packed[4:], low) == ("7fff", want)


def _flip(document: Document, name: str, bit: int) -> Document:
    """One bit of the middle word of a result changed."""
    changed = copy.deepcopy(document)
    every = changed["probes"][name]["out"].split()
    middle = len(every) // 2
    every[middle] = f"{int(every[middle], 16) ^ 1 << bit:08x}"
    changed["probes"][name]["out"] = " ".join(every)
    return changed


def test_a_changed_result_is_noticed_in_every_probe(model: Document) -> None:
    """Any bit where results are exact; an exponent bit where they are rounded."""
    for name, probe in model["probes"].items():
        found = differences(model, _flip(model, name, 0 if probe["compare"] == "exact" else 24))
        assert len(found) == 1, name
        assert found[0].startswith(f"{name}: 1 of "), found


def test_only_rounding_may_differ(model: Document) -> None:
    assert differences(model, model) == []
    for name in ("product_float16", "product_bfloat16", "powers_of_two"):
        assert differences(model, _flip(model, name, 0)) == []
        assert differences(model, _flip(model, name, 20))


def test_another_set_of_probes_is_noticed(model: Document) -> None:
    fewer = copy.deepcopy(model)
    del fewer["probes"]["votes"]
    assert differences(model, fewer) == ["votes: not recorded"]
    assert differences(fewer, model) == ["votes: missing"]
    other = copy.deepcopy(model)
    other["probes"]["votes"]["in"] = "0" + model["probes"]["votes"]["in"][1:]
    assert differences(model, other)[0].startswith("votes: recorded with other inputs")
    shorter = copy.deepcopy(model)
    shorter["probes"]["votes"]["out"] = "00000000"
    assert differences(model, shorter) == ["votes: 288 words came out, 1 recorded"]


def _sm90_document() -> Document:
    """Inputs as sm90.cu draws them are not needed here: any small integers do."""
    rng = np.random.default_rng(0)
    probes = {}
    kinds = {"rows": 32, "columns": 32, "held": 48, "mixed": 48, "wide": 48}
    for kind, in_words in kinds.items():
        for dtype in ("float16", "bfloat16"):
            x = rng.integers(-8, 9, in_words * conformance.THREADS * 2)
            bits = x.astype(conformance.NUMPY_DTYPES[dtype]).view(np.uint32)
            probes[f"{kind}_{dtype}"] = bits
    probes["box"] = rng.integers(0, 2**32, 7 * conformance.THREADS, np.uint32)
    for kind, in_words in (("runs", 1), ("additions", 3), ("subnormals", 2), ("flags", 32)):
        probes[kind] = rng.integers(0, 2**32, in_words * conformance.THREADS, np.uint32)
    probes["barrier_phases"] = np.arange(32, dtype=np.uint32)
    return {
        "platform": "test",
        "probes": {
            name: {"compare": "exact", "in": " ".join(f"{w:08x}" for w in bits), "out": ""}
            for name, bits in probes.items()
        },
    }


def test_the_arithmetic_of_hopper_is_what_loops_say() -> None:
    """The matrices and the swizzle once more, element by element."""
    document = conformance.arithmetic(_sm90_document())
    assert differences(document, conformance.arithmetic(document)) == []
    for name, probe in document["probes"].items():
        changed = _flip(document, name, 3) if name != "barrier_phases" else document
        assert (differences(changed, document) != []) == (name != "barrier_phases")
        if not name.startswith(("held", "mixed", "wide")):
            continue
        dtype = conformance.NUMPY_DTYPES[name.split("_")[1]]
        x = words(probe["in"]).view(np.uint16).view(dtype).astype(np.float64).reshape(192, 64)
        out = words(probe["out"]).view(np.float32).reshape(64, 128)
        for thread, t, e in ((0, 0, 0), (37, 9, 3), (127, 15, 2)):
            row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (e // 2)
            column = 8 * t + 2 * (thread % 4) + e % 2
            panel = x[64 + 64 * (column // 64) :][:64]
            left = x[:64, row] if name.startswith("wide") else x[row]
            assert out[4 * t + e, thread] == sum(left * panel[:, column % 64])
    tensor = words(document["probes"]["box"]["in"]).view(np.uint16)[:1600].reshape(20, 80)
    box = words(document["probes"]["box"]["out"]).view(np.uint16).reshape(16, 8, 8)
    assert box[3, 1 ^ 3, 5] == tensor[8 + 3, 64 + 8 + 5]
    assert not box[12:].any()


def test_sums_of_runs_are_those_of_loops() -> None:
    """Word by word, rounded after each addition; another order gives other bits."""
    document = conformance.arithmetic(_sm90_document())
    source, moved = (words(document["probes"]["runs"][part]) for part in ("in", "out"))
    assert [moved[0], moved[63], moved[64]] == [source[65], source[126], source[1]]
    for name, i, column in (("additions", 0, 5), ("flags", 0, 127), ("flags", 7, 100)):
        terms, out = (words(document["probes"][name][part]) for part in ("in", "out"))
        every = terms.view(np.int32).reshape(-1, 128)[:, (column + 17 * i) % 128]
        total = np.float32(every[0])
        for term in every[1:]:
            total += np.float32(term)
        assert out.view(np.float32)[128 * i + column] == total
    x, y = words(document["probes"]["subnormals"]["in"]).reshape(2, 128) & 0x80FFFFFF
    out = words(document["probes"]["subnormals"]["out"])
    subnormal = 0
    for a, b, got in zip(x.tolist(), y.tolist(), out.tolist(), strict=True):
        units = [(bits & 0x7FFFFFFF) * (-1 if bits >> 31 else 1) for bits in (a, b)]
        if all(abs(u) < 1 << 24 for u in units) and abs(sum(units)) < 1 << 24:
            assert got & 0x7FFFFFFF == abs(sum(units))  # multiples of the smallest float
        subnormal += got & 0x7F800000 == 0 and got & 0x7FFFFFFF != 0
    assert subnormal > 10
    terms, out = (words(document["probes"]["flags"][part]) for part in ("in", "out"))
    np.testing.assert_array_equal(out.reshape(3, -1), out.reshape(3, -1)[[1, 2, 0]])
    backwards = {**document["probes"]["flags"]}
    backwards["in"] = " ".join(f"{w:08x}" for w in terms.reshape(32, 128)[::-1].ravel())
    again = conformance.arithmetic({"platform": "test", "probes": {"flags": backwards}})
    assert again["probes"]["flags"]["out"] != document["probes"]["flags"]["out"]


CUDA = conformance.ROOT / "csrc" / "cuda"
SIMT = conformance.MODEL / "simt"
BUILTINS = r"__(?:sync|shfl|all|any|ballot|match|reduce)\w*|atomic\w+"


def _names(pattern: str, *files: Path) -> set[str]:
    found: set[str] = set()
    for file in files:
        code = re.sub(r"//.*", "", file.read_text())
        found |= set(re.findall(pattern, code, re.MULTILINE))
    return found


def _kernels(folder: str) -> list[Path]:
    """Where kernels of a folder call instructions, and do not define them."""
    return [p for p in (CUDA / folder).glob("*.cuh") if p.name != "device.cuh"]


def test_the_table_names_what_the_model_has_and_what_the_kernels_call() -> None:
    """Three lists that are one: an instruction in one of them alone has no evidence."""
    table = {name for part in conformance.INSTRUCTIONS.values() for name in part}
    assert not table & conformance.NO_PROBE.keys()
    known = table | conformance.NO_PROBE.keys()
    headers = SIMT / "device.h", SIMT / "hopper_device.h"
    definition = r"^(?:inline )?(?!return|else|namespace)[\w:]+ (\w+)\([^;{]*\) \{"
    assert _names(definition, *headers) - {"exchange", "land"} == known - {"barrier_try_wait"}
    wrappers = CUDA / "sm80" / "device.cuh", CUDA / "sm90" / "device.cuh"
    wrapped = _names(r"__forceinline__ (?:constexpr )?\w+ (\w+)\(", *wrappers)
    called = _names(rf"\b({BUILTINS})\(", *_kernels("sm80"), *_kernels("sm90"))
    assert wrapped | called == known
    used = _names(r"\b(\w+)(?:<[^<>()]*>)?\(", *_kernels("sm80"), *_kernels("sm90"))
    assert table - used == set()


@pytest.mark.parametrize("name", ["sm80", "sm90"])
def test_every_instruction_has_a_probe_that_calls_it(name: str) -> None:
    """Directly, or in a function that the probe calls."""
    code = (conformance.SOURCES / f"{name}.cu").read_text()
    code = re.sub(r"__launch_bounds__\(.*?\)", "", code)
    bodies = {}
    for block in re.split(r"\n(?=\S)", code):
        if found := re.search(r"\b(\w+)\((?:const|uint|float|.*\) \{)", block):
            bodies[found[1]] = block
    rows = dict(re.findall(r'\{"(\w+)", (\w+)', code))
    for instruction, probes in conformance.INSTRUCTIONS[name].items():
        assert probes, instruction
        for probe in probes:
            body = bodies[rows[probe]]
            body += "".join(b for n, b in bodies.items() if re.search(rf"\b{n}\b", body))
            assert re.search(rf"\b{instruction}\b", body.split("(", 1)[1]), (instruction, probe)
    named = {probe for probes in conformance.INSTRUCTIONS[name].values() for probe in probes}
    assert named == set(rows)


@needs_nvcc
@pytest.mark.parametrize("architecture", ["75", "80"])
def test_the_probes_compile(tmp_path: Path, architecture: str) -> None:
    assert conformance.build_cuda("sm80", architecture, tmp_path).exists()


@needs_nvcc
def test_the_probes_of_hopper_compile(tmp_path: Path) -> None:
    if not conformance.SM90_HEADER.exists():
        pytest.skip("this version has no csrc/cuda/sm90")
    assert conformance.build_cuda("sm90", "90a", tmp_path).exists()


@needs_nvcc
def test_the_hand_overs_for_the_sanitizers_compile(tmp_path: Path) -> None:
    assert conformance.build_cuda("handover", "90a", tmp_path).exists()
