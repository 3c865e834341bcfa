"""The benchmarks: what is timed is right, what is wrong is refused, what was measured is shown."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import oracle

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import layouts
import models
import one_case
import overhead
import report
import suites
import targets
from cases import DECODE, FORWARD, TRAINING, Case
from providers import Prepared, Provider
from record import Log, Row
from suites import Suite
from truth import Truth
from truth_model import ModelTruth, gradient_of

# Odd lengths and several batch items, so that a swapped axis cannot hide. Two tokens of more than
# one head differ from zero in every gradient.
KERNEL_CASES = [
    Case(FORWARD, 2, 4, 33, 33, 16),
    Case(FORWARD, 1, 2, 20, 20, 32, causal=False),
    Case(TRAINING, 2, 2, 17, 17, 8),
    Case(DECODE, 1, 4, 1, 70, 16),
]
GROUPED = [
    Case(DECODE, 1, 4, 1, 70, 16, heads_kv=2),
    Case(TRAINING, 2, 6, 17, 17, 8, heads_kv=2),
]
PADDED = [
    Case(mode, 2, 4, 33, 33, 16, causal, lengths=(20, 33))
    for mode, causal in ((FORWARD, True), (FORWARD, False), (TRAINING, True))
]
MODEL_CASES = [
    models.ModelCase(mode, 2, 3, 7, 7, 4, layers=1, expansion=2) for mode in (FORWARD, TRAINING)
]
SUITES = suites.all_suites()


def _checks() -> list[Any]:
    """Every provider of every suite on tiny cases."""
    suites = {
        "forward": [*KERNEL_CASES, *GROUPED, *PADDED],
        "layouts": KERNEL_CASES,
        "overhead": overhead.CASES,
        "models": MODEL_CASES,
        "layer": MODEL_CASES,
    }
    return [
        pytest.param(replace(SUITES[name], providers=[p]), case, id=f"{name}-{p.name}-{case.name}")
        for name, cases in suites.items()
        for p in SUITES[name].providers
        for case in cases
    ]


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "CALLS", 3)


@pytest.mark.parametrize(("suite", "case"), _checks())
def test_every_provider_that_is_here_is_right(suite: Suite, case: Case) -> None:
    """`prepare` compares with float64: its status is "ok" only for the right answer."""
    (provider,) = suite.providers
    reasons = provider.reasons_against(case)
    if reasons:
        pytest.skip("; ".join(reasons))
    rows = {provider.name: Row.of("test", case, provider)}
    ready = dict(one_case.prepare(case, suite, rows))
    row = rows[provider.name]
    assert row.status == "ok"
    assert list(ready) == [provider.name]
    ready[provider.name].run()
    # float32 on inputs of order one: two orders below the limits of truth.py, which are wide for
    # peers with long sequences.
    assert provider.kind == "yardstick" or float(row.error) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_in_16_bits_runs_in_mindspore(dtype: str) -> None:
    case = Case(TRAINING, 1, 2, 17, 17, 8, dtype=dtype)
    (ours,) = (p for p in SUITES["training"].providers if p.name.endswith("in MindSpore (graph)"))
    rows = {ours.name: Row.of("test", case, ours)}
    assert list(dict(one_case.prepare(case, Suite([case], [ours]), rows))), rows


def _provider(outputs: Any, package: str = "numpy") -> Provider:
    def prepare(case: Case, inputs: dict[str, np.ndarray]) -> Prepared:
        return Prepared(lambda: None, lambda: outputs(case, inputs))

    return Provider("made up", "peer", package, prepare, lambda case: [], "")


def _status(provider: Provider, case: Case, truth: Any) -> str:
    rows = {provider.name: Row.of("test", case, provider)}
    ready = list(one_case.prepare(case, Suite([case], [provider], truth), rows))
    status = rows[provider.name].status
    assert bool(ready) == (status == "ok")
    return status


@pytest.mark.parametrize(
    ("case", "truth", "name"),
    [
        (KERNEL_CASES[2], Truth, "out"),
        (KERNEL_CASES[2], Truth, "dk"),
        (MODEL_CASES[1], ModelTruth, "out"),
        (MODEL_CASES[1], ModelTruth, gradient_of("layers.0.ffn.fc1.bias")),
    ],
)
def test_a_wrong_result_is_refused(case: Case, truth: Any, name: str) -> None:
    """An error of 2%, a NaN and a missing array are each named; the right values pass."""
    checked = truth(case, case.inputs())

    def status(change: Any) -> str:
        def outputs(case: Case, inputs: Any) -> dict[str, np.ndarray]:
            # Truth knows the first and the last head of the first batch item, ModelTruth all.
            values = {n: a[None].copy() for n, a in checked.values.items()}
            if truth is ModelTruth:
                values = {n: a.copy() for n, a in checked.values.items()}
            change(values)
            return values

        return _status(_provider(outputs), case, truth)

    def scale(values: dict[str, np.ndarray]) -> None:
        values[name] *= 1.02

    def poison(values: dict[str, np.ndarray]) -> None:
        values[name].flat[0] = np.nan

    assert status(lambda values: None) == "ok"
    assert status(scale).startswith(f"wrong result: {name} is off by ")
    assert status(poison).startswith(f"wrong result: {name} is off by nan")
    assert status(lambda values: values.pop(name)) == f"did not return {name}"


def test_what_cannot_run_gets_a_row_with_its_reason() -> None:
    def broken(case: Case, inputs: Any) -> dict[str, np.ndarray]:
        raise MemoryError("no room\nfor this")

    case = KERNEL_CASES[0]
    absent = _provider(broken, package="a_package_that_is_not_there")
    assert "a_package_that_is_not_there cannot be imported" in _status(absent, case, Truth)
    assert _status(_provider(broken), case, Truth) == "failed: MemoryError: no room"
    misshapen = _provider(lambda case, inputs: {"out": inputs["q"][..., :3]})
    assert _status(misshapen, case, Truth).startswith("failed: ValueError")
    refusing = replace(_provider(broken), unsupported=lambda case: ["no float8", "too long"])
    assert _status(refusing, case, Truth) == "no float8; too long"


@pytest.mark.parametrize("case", [KERNEL_CASES[2], GROUPED[1]], ids=lambda case: case.name)
def test_truth_agrees_with_the_oracle_of_the_kernels(case: Case) -> None:
    """Two float64 programs that share nothing."""
    inputs = case.inputs()
    q, k, v, dout = (inputs[n] for n in ("q", "k", "v", "dout"))
    out, _ = oracle.attention(q, k, v, case.slopes)
    gradients = oracle.attention_grad(q, k, v, case.slopes, dout)
    expected = {"out": out, **dict(zip(("dq", "dk", "dv"), gradients, strict=False))}
    # Inputs are of order one, and the oracle rounds the scale to float32.
    for name, got in Truth(case, inputs).values.items():
        first_and_last = expected[name][0][[0, -1]]
        np.testing.assert_allclose(got, first_and_last, atol=1e-6)


def test_gradients_of_the_true_model_are_its_slopes() -> None:
    """A central difference of the loss along a random direction of every array.

    Its error is of order step^2 (1e-12) and rounding / step (1e-10); the derivatives are of order
    one.
    """
    case = models.ModelCase(TRAINING, 2, 3, 5, 5, 4, layers=2, expansion=2)
    inputs = {n: a.astype(np.float64) for n, a in case.inputs().items()}
    gradients = ModelTruth(case, inputs).values
    rng, step = np.random.default_rng(1), 1e-6

    def loss(name: str, change: np.ndarray) -> float:
        moved = inputs | {name: inputs[name] + change}
        out = ModelTruth(replace(case, mode=FORWARD), moved).values["out"]
        return float(np.mean((out - inputs["target"]) ** 2))

    for name in ("x", *case.weight_shapes()):
        direction = rng.standard_normal(inputs[name].shape)
        slope = (loss(name, step * direction) - loss(name, -step * direction)) / (2 * step)
        gradient = gradients["dx" if name == "x" else gradient_of(name)]
        assert abs(slope - np.sum(gradient * direction)) < 1e-8, name


def test_model_case_names_the_weights_of_the_model(ms: Any) -> None:
    from alibi import ALiBiConfig, ALiBiTransformer

    case = models.ModelCase(FORWARD, 1, 3, 4, 4, 8, layers=2, expansion=4)
    config = ALiBiConfig(num_layers=2, d_model=24, num_heads=3, expansion_factor=4)
    parameters = ALiBiTransformer(config).parameters_and_names()
    assert {n: tuple(p.shape) for n, p in parameters} == case.weight_shapes()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("mode", "products"), [(FORWARD, 2), (TRAINING, 7)])
def test_flops_against_a_count(mode: str, products: int, causal: bool) -> None:
    """Every multiply-add of every allowed pair, one by one. The formula halves a causal square,
    which leaves out half of its diagonal: S / (S + 1) of the count.
    """
    case = Case(mode, 2, 3, 6, 6, 4, causal)
    count = 0
    for i in range(case.queries):
        for j in range(case.keys):
            count += 2 * case.head_dim * (not causal or j <= i)
    count *= products * case.batch * case.heads
    assert case.flops == pytest.approx(count * (6 / 7 if causal else 1), rel=1e-15)

    model = models.ModelCase(mode, 2, 3, 6, 6, 4, causal, layers=2, expansion=3)
    dense = sum(2 * np.prod(s) * 2 * 6 for s in model.weight_shapes().values() if len(s) == 2)
    times = 1 if mode == FORWARD else 3
    assert model.flops == pytest.approx(2 * case.flops + times * dense, rel=1e-15)


def _timed(name: str, suite: Suite, case: Case) -> list[Row]:
    """Rows of a suite as a run would write them, with made-up times."""
    rows = [Row.of(name, case, p) for p in suite.providers]
    for place, row in enumerate(rows, start=2):
        row.median_ms = row.p20_ms = row.p80_ms = f"{place}.5"
        row.floor_ms, row.fraction_of_floor, row.samples = "1", f"{1 / place:.3f}", "20"
        row.kept = "0.5" if "pruned" in row.provider else ""
        row.peak_extra_mb = f"{place}0.1" if suite.memory(case) else ""
        row.tokens_per_s = f"{place}000" if isinstance(case, models.ModelCase) else ""
    rows[-1].median_ms, rows[-1].status = "", "no such thing here"
    return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of a made-up run of every suite."""
    meta = {
        "machine": {"cpu": "A CPU", "family": "1/2/3", "cores": "2"},
        "commit": "abcdef",
        "versions": {"mindspore": "2.10.0"},
        "ceilings": {"case": {"fma": 100.0, "bf16": 200.0, "exp": 20.0, "bandwidth": 50.0}},
    }
    log = Log(tmp_path_factory.mktemp("results") / "made-up.csv", meta)
    for name, suite in SUITES.items():
        log.add([row for case in suite.cases for row in _timed(name, suite, case)])
    return log.path


def test_csv_has_every_column_and_row(results: Path) -> None:
    with results.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [f.name for f in fields(Row)]
    assert len(rows) == sum(len(s.cases) * len(s.providers) for s in SUITES.values())
    assert {r["suite"] for r in rows} == set(SUITES)
    assert json.loads(results.with_suffix(".json").read_text())["commit"] == "abcdef"
    (model,) = {(r["layers"], r["expansion"]) for r in rows if r["case"] == models.CASES[2].name}
    assert model == ("12", "4")


def test_report_renders_every_suite(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "REPOSITORY", results.parent)
    monkeypatch.setattr(report, "IMAGES", tmp_path / "images")
    page = report.page(results)
    titles = [*report.TITLES.values(), *(title for title, _ in report.SECTIONS.values())]
    for title in [*titles, "Peak extra memory", "Targets", "Where a peer is faster"]:
        assert f"## {title}\n" in page
    for target in targets.TARGETS:
        assert f"| {target.text} | {target.needed} | " in page
    assert (tmp_path / "images" / "growth.png").stat().st_size > 1000
    # Provider i of a suite takes i + 2.5 ms; the last was not measured.
    assert "| forward (1,8,512,32) | 2.5 (1.00) | 3.5 (1.40) | 4.5 (1.80) | - |" in page
    assert "| native.attention_forward | - | - |" in page  # overhead
    assert "| builtin add | 2,500.0 | 3,500.0 |" in page
    assert "| ALiBiTransformer, fused (graph) | 2,000 (20.1 MB) | 2,000 (20.1 MB) |" in page
    assert "| best peer / fused | **2.20x** |" in page  # 5.5 / 2.5
    assert (
        "| training, 1 layers, d_model 256, batch 8, length 256 | 2.5 | 4.5 | - | - | 3.5 |" in page
    )
    assert "- packed, spans: no such thing here (13 cases)" in page
    lines = page.splitlines()
    for start, line in enumerate(lines[:-1]):  # each table has the same number of cells throughout
        if lines[start + 1].startswith("|---"):
            end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
            assert len({row.count("|") for row in lines[start:end]}) == 1, line


def test_report_names_the_targets_on_other_machines(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest run of each, and not the machine of the page."""
    here, there = tmp_path / "results" / "here", tmp_path / "results" / "there"
    for folder in (here, there):
        folder.mkdir(parents=True)
        for suffix in (".csv", ".json"):
            for day in (1, 2):
                text = results.with_suffix(suffix).read_text()
                (folder / f"2026-01-0{day}-0000-abcdef{suffix}").write_text(text)
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    lines = report.elsewhere(here / "2026-01-02-0000-abcdef.csv")
    assert [x for x in lines if x.startswith("## ")] == ["## Targets on there"]
    assert any("results/there/2026-01-02-0000-abcdef.csv" in x for x in lines)
    assert sum(x.startswith(f"| {targets.TARGETS[0].text} ") for x in lines) == 1


def test_summary_for_the_readme(results: Path, tmp_path: Path) -> None:
    """Provider i of a suite takes i + 2.5 ms, so that the best peer takes 11.5 ms, ours 2.5 ms."""
    lines = report.summary(report.read(results), "some.csv")
    assert "`some.csv`" in lines[0]
    assert "| Forward, causal, float32 | 4.60 | 3.29 | 50% |" in lines
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nb\n")
    assert report.fill_readme(readme, ["new"])
    assert readme.read_text() == (
        "a\n<!-- benchmarks:begin -->\n\nnew\n\n<!-- benchmarks:end -->\nb\n"
    )
    readme.write_text("no marks")
    assert not report.fill_readme(readme, ["new"])
    assert readme.read_text() == "no marks"


def test_the_committed_page_is_of_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the README's table; of all machines, whose older tables have fewer columns."""
    if not report.runs(report.RESULTS):
        pytest.skip("the raw data is in a checkout only")
    draw = report.plots.draw
    monkeypatch.setattr(report.plots, "draw", lambda suite, rows, _: draw(suite, rows, tmp_path))
    newest = report.newest()
    assert report.page(newest) == report.PAGE.read_text()
    source = str(newest.relative_to(report.REPOSITORY))
    assert "\n".join(report.summary(report.read(newest), source)) in report.README.read_text()


def test_peak_memory_of_a_provider_in_a_process_of_its_own() -> None:
    """The kernels need scratch, not scores: 8 heads of 512 * 512 floats alone would be 8.4 MB."""
    case = layouts.CASES[0]
    command = [sys.executable, str(one_case.RUN), "--memory-of", "layouts", case.name]
    done = subprocess.run([*command, layouts.BNSD], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) < 8
