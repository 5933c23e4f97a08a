"""The report of the comparison of optimizers: its measures, and that the page is up to date."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.evidence_results import (
    CONV,
    FAILED,
    RATES,
    RESNET,
    TEXT,
    Values,
    compare,
    curve,
    runs,
    save,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Skip if a dependency of the evidence is missing."""
    for name in ("sklearn", "matplotlib", "schedulefree", "prodigyopt", "prodigyplus"):
        pytest.importorskip(name, reason="the examples and test extras are not installed")


@pytest.fixture
def evidence() -> Any:
    """The modules of the report, by name."""
    names = ("report", "plan", "methods", "tasks", "measures", "comparing", "targets", "sections")
    return SimpleNamespace(**{n: import_module(f"docs.evidence.{n}") for n in names})


@pytest.fixture(scope="module")
def comparisons() -> Any:
    """The measures of the page's results, which take seconds to load."""
    return import_module("docs.evidence.report").load()


TWO_TASKS: dict[str, Values] = {
    CONV: {
        "AdamW": curve(0.9, 0.89, rest=FAILED),
        "AdamW + MoMo": curve(0.9, 0.885, 0.895, 0.881, rest=0.3),
        "Mechanic": curve(0.9, 0.9, 0.9, 0.9, rest=0.1),
    },
    RESNET: {
        "AdamW": curve(0.8, rest=0.5),
        "AdamW + MoMo": curve(0.77, rest=0.5),
        "Mechanic": curve(0.1, rest=0.1),
    },
}


def test_mean_tolerances_of_known_results(evidence: Any) -> None:
    comparison = compare(evidence, TWO_TASKS)
    assert comparison.tasks == [CONV, RESNET]
    widths = {task: comparison.cells["AdamW + MoMo", task].decades for task in comparison.tasks}
    assert widths == {CONV: pytest.approx(2), RESNET: -math.inf}
    mean = comparison.mean_width
    assert mean("AdamW", comparison.tasks) == pytest.approx((2 / 3 + 0) / 2)
    assert mean("AdamW + MoMo", comparison.tasks) == pytest.approx((2 + 0) / 2)
    assert mean("AdamW", comparison.tasks, "strict") == pytest.approx((2 / 3 + 0) / 2)
    assert mean("AdamW + MoMo", comparison.tasks, "strict") == pytest.approx(0)
    held_out = comparison.common(["AdamW"], evidence.tasks.HELD_OUT)
    assert held_out == [RESNET]
    assert math.isnan(mean("AdamW", []))


def test_margin_of_losses_is_a_share_of_the_best(evidence: Any) -> None:
    losses = {"AdamW": curve(2.2, 2.09, 2.0, 2.03, 2.11, rest=FAILED)}
    cell = compare(evidence, {TEXT: losses}).cells["AdamW", TEXT]
    assert (cell.decades, cell.strict) == (pytest.approx(4 / 3), pytest.approx(2 / 3))
    assert (cell.best, cell.best_lr, cell.highest) == (pytest.approx(2.0), RATES[2], RATES[3])


def test_own_tolerance_is_against_the_same_base(evidence: Any) -> None:
    scores = {"Muon": curve(0.95, rest=0.1), "Lion": curve(0.9, 0.9, rest=0.1)}
    scores["Lion + MoMo"] = curve(0.85, 0.9, 0.9, 0.9, rest=0.1)
    cells = compare(evidence, {CONV: scores}).cells
    assert cells["Lion", CONV].decades == -math.inf
    assert cells["Lion", CONV].own == pytest.approx(2 / 3)
    assert cells["Lion + MoMo", CONV].own == pytest.approx(4 / 3)


def test_intervals_of_as_many_points_are_as_wide(evidence: Any) -> None:
    """The learning rates are rounded, so that their distances differ a little."""
    scores = {
        "SGD-M": [0.1] * 5 + [0.9, 0.9] + [0.1] * 3,
        "SGD-M + MoMo": [0.1] * 6 + [0.9, 0.9] + [0.1] * 2,
    }
    comparison = compare(evidence, {CONV: scores})
    assert evidence.comparing.narrower(comparison, "SGD-M + MoMo") == []


def test_narrower_tasks_are_reported(evidence: Any) -> None:
    comparison = compare(evidence, TWO_TASKS)
    (found,) = evidence.comparing.narrower(comparison, "AdamW + MoMo")
    assert (found.task, found.decades, found.bare) == (RESNET, -math.inf, 0.0)
    text = evidence.sections.tolerances({"constant": comparison})
    assert f"- AdamW + MoMo: {RESNET} (—, bare 0.00)" in text


def test_incomplete_methods_are_omitted_and_named(evidence: Any) -> None:
    results = pd.concat([runs(evidence, task, values) for task, values in TWO_TASKS.items()])
    a_run = (results["lr"] == RATES[3]) & (results["seed"] == 1)
    on_resnet = results["task"] == RESNET
    lacks = results["optimizer"] == "AdamW + MoMo"
    comparison = evidence.measures.Comparison(results[~(a_run & on_resnet & lacks)])
    assert comparison.tasks == [CONV, RESNET]
    assert comparison.common(["AdamW + MoMo"]) == [CONV]
    assert "AdamW + MoMo" in comparison.missing[RESNET]
    lacks = results["optimizer"] == "Lion"
    comparison = evidence.measures.Comparison(results[~(a_run & on_resnet & lacks)])
    assert comparison.tasks == [CONV]
    text = evidence.sections.runs({"constant": comparison})
    assert f"{len(comparison.by_seed[CONV].columns) * len(RATES)} runs on 1 of 10 tasks" in text
    (others,) = [line for line in text.splitlines() if "all methods" in line]
    assert TEXT in others
    assert CONV not in others
    (partly,) = [line for line in text.splitlines() if line.endswith(f": {RESNET}")]
    assert "Lion, " in partly


def test_sections_of_no_results(evidence: Any) -> None:
    nothing = runs(evidence, CONV, {}).iloc[:5]
    sections = evidence.report.generated({"constant": evidence.measures.Comparison(nothing)})
    assert sections["tolerances"] == "No task is complete yet."
    assert "no results yet" in sections["targets"]


def test_one_setting_against_tuned_bare_ones(evidence: Any) -> None:
    one = RATES.index(1.0)
    scores = {name: [0.5] * len(RATES) for name in ("AdamW", "AdamW + MoMo", "Muon")}
    scores["AdamW"][2], scores["Muon"][4], scores["AdamW + MoMo"][one] = 0.9, 0.93, 0.895
    comparison = compare(evidence, {CONV: scores})
    found = evidence.comparing.at_one_setting(comparison, "AdamW + MoMo", 1.0)
    assert found.same_base == {CONV: pytest.approx(-0.5)}
    assert found.any_base == {CONV: pytest.approx(-3.5)}
    assert evidence.comparing.shortfall(found.any_base) == pytest.approx(3.5)
    verdict = evidence.targets.check_one_setting(comparison, ["AdamW + MoMo"])
    assert verdict.met
    assert verdict.measured == "1 of 1; against the best of all bases: 0 of 1"


def test_hindsight_counts_a_failure_as_ten(evidence: Any) -> None:
    tasks = {
        CONV: {"Muon": curve(0.9, rest=0.1), "Prodigy": curve(0.9, 0.85, rest=0.1)},
        TEXT: {"Muon": curve(2.0, rest=9.0), "Prodigy": curve(FAILED, 2.2, rest=9.0)},
    }
    comparison = compare(evidence, tasks)
    found = evidence.comparing.in_hindsight(comparison, "Prodigy")
    # 5 points, and 10 % or 5 times 2 %, against none and a failure.
    assert found.lr in RATES[:2]
    assert evidence.comparing.shortfall(found.any_base) == pytest.approx(5)
    first = evidence.comparing.at_one_setting(comparison, "Prodigy", RATES[0])
    assert first.any_base[TEXT] == -math.inf
    assert evidence.comparing.shortfall(first.any_base) == pytest.approx((0 + 10) / 2)


@pytest.mark.parametrize(
    ("best", "units", "met"), [(0.903, 3, True), (0.899, -1, True), (0.897, -3, False)]
)
def test_bests_in_units_of_noise(evidence: Any, best: float, units: float, met: bool) -> None:
    scores = {"Adam": curve(0.5, 0.9, rest=FAILED), "Adam + MoMo": curve(0.5, best, rest=0.5)}
    comparison = compare(evidence, {CONV: scores})
    gain, found = evidence.comparing.at_their_bests(comparison, "Adam + MoMo", CONV)
    assert (gain, found) == (pytest.approx(100 * (best - 0.9)), pytest.approx(units))
    assert evidence.targets.check_best(comparison, ["Adam + MoMo"]).met is met


def test_target_of_tolerance(evidence: Any) -> None:
    scores = {"AdamW": curve(0.9, 0.9, rest=0.1), "AdamW + MoMo": curve(0.9, 0.9, 0.9, rest=0.1)}
    check = evidence.targets.check_tolerance
    assert check(compare(evidence, {CONV: scores}), "AdamW + MoMo").met
    missed = check(compare(evidence, {CONV: scores, RESNET: TWO_TASKS[RESNET]}), "AdamW + MoMo")
    assert missed.met is False
    assert missed.measured == "2.0 x, narrower on 1 of 2; held out: 1.0 x, 1 of 1"
    assert check(compare(evidence, {CONV: scores}), "AdamW + TrustedMoMo").met is None


def test_widest_among_tuners(evidence: Any) -> None:
    tuners = dict.fromkeys(evidence.methods.TUNERS, curve(0.9, 0.9, rest=0.1))
    wide, same, none = (curve(*[0.9] * points, rest=0.1) for points in (3, 2, 0))
    tasks = {
        CONV: {**tuners, "AdamW + MoMo": wide},
        RESNET: {**tuners, "AdamW + MoMo": same},
        TEXT: {**tuners, "AdamW + MoMo": none, "SGD-M": curve(0.05, rest=9.0)},
    }
    comparison = compare(evidence, tasks)
    found = evidence.comparing.widest(comparison, "AdamW + MoMo")
    assert (found.alone, found.shared, found.behind) == ([CONV], [RESNET], [TEXT])
    verdict = evidence.targets.check_widest(comparison, "AdamW + MoMo")
    assert verdict.met
    assert verdict.measured == "2 of 3, alone on 1"


def test_only_what_is_between_markers_is_replaced(evidence: Any) -> None:
    replace = evidence.report.replace_sections
    page = (
        "a\n<!-- generated: one -->\nold\n<!-- end -->\nb\n<!-- generated: two -->\n<!-- end -->\n"
    )
    sections = {"one": r"new \1", "two": "x"}
    found = replace(page, sections)
    assert "old" not in found
    assert found.startswith("a\n<!-- generated: one -->\n\nnew \\1\n\n<!-- end -->\nb\n")
    assert replace(found, sections) == found


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<!-- generated: one -->\n",
        "<!-- generated: one -->\n<!-- generated: two -->\n<!-- end -->\n",
        2 * "<!-- generated: one -->\n<!-- end -->\n",
    ],
)
def test_markers_must_be_there_once(evidence: Any, page: str) -> None:
    with pytest.raises(ValueError, match="generated: one -->"):
        evidence.report.replace_sections(page, {"one": "text"})


def test_report_is_written_and_stays_the_same(evidence: Any, tmp_path: Path) -> None:
    for schedule in ("constant", "decay"):
        save(evidence, TWO_TASKS, tmp_path / f"{schedule}.csv")
    page = tmp_path / "page.md"
    page.write_text(evidence.report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    evidence.report.write(tmp_path, page, tmp_path)
    written = page.read_text(encoding="utf-8")
    assert f"AdamW + MoMo: {RESNET}" in written
    sections = evidence.report.all_sections(tmp_path)
    assert evidence.report.replace_sections(written, sections) == written
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert len(summary) == 2 * 2 * 8
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert {"tolerance.png", "constant_adamw.png", "decay_sgd_m.png"} <= figures


def test_no_results_raise(evidence: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sweeps\.py makes them"):
        evidence.report.load(tmp_path)


def test_the_page_is_that_of_the_results(
    evidence: Any, comparisons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m docs.evidence.report` writes it again."""
    monkeypatch.setattr(evidence.report, "load", lambda *_: comparisons)
    page = evidence.report.PAGE.read_text(encoding="utf-8")
    assert evidence.report.replace_sections(page, evidence.report.all_sections()) == page
    summary = evidence.measures.summary(comparisons).to_csv(index=False, float_format="%.6g")
    assert (evidence.report.RESULTS / "summary.csv").read_text() == summary


def test_grid_of_the_tests_is_that_of_the_sweeps(evidence: Any) -> None:
    assert evidence.plan.LEARNING_RATES == RATES
