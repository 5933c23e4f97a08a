"""Each rule at multiples of the best learning rate, in docs/evidence, and what its page has."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import momo_wrap
from momo_wrap import StepRule, research, sweep


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Skip where what the evidence needs is not there."""
    for name in ("sklearn", "matplotlib", "schedulefree", "prodigyopt", "prodigyplus"):
        pytest.importorskip(name, reason="the examples and test extras are not installed")


@pytest.fixture
def evidence() -> Any:
    names = ("report", "which_rule")
    return SimpleNamespace(**{n: import_module(f"docs.evidence.{n}") for n in names})


def test_the_page_is_that_of_the_results(evidence: Any) -> None:
    """`python -m docs.evidence.which_rule` writes it anew."""
    page = evidence.which_rule.PAGE.read_text(encoding="utf-8")
    sections = evidence.which_rule.sections()
    assert evidence.report.replace_sections(page, sections) == page
    assert len(sections) == 2
    for text in sections.values():
        assert "?" not in text
        assert len(text.splitlines()) == 3 + len(evidence.which_rule.RULES)


def test_every_rule_is_in_it(evidence: Any) -> None:
    """But for one that has no default; and those that were tried."""
    kinds = [getattr(momo_wrap, name) for name in momo_wrap.__all__]
    kinds += [getattr(research, name) for name in research.__all__]
    rules = {k.__name__ for k in kinds if isinstance(k, type) and issubclass(k, StepRule)}
    tried = {"LimitedGrowth", "TrustRegion", "WarmTarget"}
    assert set(evidence.which_rule.RULES) == rules - {"StepRule", "ScheduledBound"} | tried


def test_a_cell_is_the_mean_of_all_runs_or_tells_what_is_missing(evidence: Any) -> None:
    def cell(*runs: tuple[int, str, float]) -> str:
        rows = [("t", "Adam", 0.1, *run) for run in runs]
        names = ["task", "optimizer", "lr", "seed", "status", "loss"]
        found: str = evidence.which_rule._cell(pd.DataFrame(rows, columns=names), "t", "Adam", 0.1)
        return found

    assert cell((0, "ok", 1.0), (1, "ok", 2.0), (5, "ok", 9.0)) == "1.5"
    assert cell((0, "ok", 1.0), (1, "diverged", float("nan"))) == "fails"
    assert cell((0, "ok", 1.0)) == "?"


def test_learning_rates_are_multiples_of_the_best_of_the_bare_base(evidence: Any) -> None:
    which = evidence.which_rule
    known = sweep.load(which.path_of("constant"))
    runs = known[(known["optimizer"] == "Adam") & (known["task"] == "digits, diffusion")]
    best = float(runs.groupby("lr")["loss"].median().idxmin())
    assert which.rates("Adam", "digits, diffusion") == pytest.approx([best, 10 * best, 100 * best])
