"""Each rule at multiples of the best learning rate, in docs/evidence, and what its page has."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import momo_wrap
from momo_wrap import MoMoWrapper, StepRule, research, sweep


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Skip if a dependency of the evidence is missing."""
    for name in ("sklearn", "matplotlib", "schedulefree", "prodigyopt", "prodigyplus"):
        pytest.importorskip(name, reason="the examples and test extras are not installed")


@pytest.fixture
def evidence() -> Any:
    names = ("report", "twins", "which_base", "which_rule")
    return SimpleNamespace(**{n: import_module(f"docs.evidence.{n}") for n in names})


def test_the_page_is_that_of_the_results(evidence: Any) -> None:
    """`python -m docs.evidence.which_rule` writes it again."""
    page = evidence.which_rule.PAGE.read_text(encoding="utf-8")
    sections = evidence.which_rule.sections()
    assert evidence.report.replace_sections(page, sections) == page
    assert len(sections) == 2
    for text in sections.values():
        assert "?" not in text
        assert len(text.splitlines()) == 3 + len(evidence.which_rule.RULES)


def test_methods_over_bases_of_their_own_are_in_it_too(evidence: Any) -> None:
    """`python -m docs.evidence.which_base` writes it again."""
    page = evidence.which_rule.PAGE.read_text(encoding="utf-8")
    sections = evidence.which_base.sections()
    assert evidence.report.replace_sections(page, sections) == page
    (text,) = sections.values()
    assert "?" not in text
    methods = [method for base in evidence.which_base.BASES.values() for method in base.rules]
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
    assert [row for row in rows if not row.endswith(", bare")] == methods


def test_every_rule_is_in_it(evidence: Any) -> None:
    """But for one that has no default; and those that were tried."""
    kinds = [getattr(momo_wrap, name) for name in momo_wrap.__all__]
    kinds += [getattr(research, name) for name in research.__all__]
    rules = {k.__name__ for k in kinds if isinstance(k, type) and issubclass(k, StepRule)}
    tried = {"LimitedGrowth", "TrustRegion", "WarmTarget"}
    assert set(evidence.which_rule.RULES) == rules - {"StepRule", "ScheduledBound"} | tried


def test_a_cell_is_the_mean_of_all_runs_or_names_the_missing_ones(evidence: Any) -> None:
    def cell(*runs: tuple[int, str, float]) -> str:
        rows = [("t", "Adam", 0.1, *run) for run in runs]
        names = ["task", "optimizer", "lr", "seed", "status", "loss"]
        found: str = evidence.which_rule.cell(pd.DataFrame(rows, columns=names), "t", "Adam", 0.1)
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


def test_twins_are_judged_by_the_one_that_was_better(evidence: Any) -> None:
    """Two numbers that are to be 0, from different starts, neither of which gets there."""
    starts: list[float] = []

    def make_problem(factor: float = 1.0) -> Any:
        model = torch.nn.Linear(1, 1, bias=False)
        starts.append(float(model.weight.detach().abs()))
        return SimpleNamespace(
            model=model,
            batches=[None] * 3,
            loss=lambda copy, _: factor * copy.weight.square().sum(),
            evaluate=lambda copy: {"loss": float(copy.weight.abs()), "score": copy.training},
        )

    def make_optimizer(params: Any, lr: float) -> MoMoWrapper:
        return MoMoWrapper(torch.optim.SGD(params, lr), research.TwinPolyak())

    for seed in range(6):
        starts.clear()
        found = evidence.twins.train_twins(1e-6, make_optimizer, seed, make_problem=make_problem)
        assert found["loss"] == pytest.approx(min(starts), rel=1e-4)
        assert not found["score"]
    failing = partial(make_problem, math.nan)
    with pytest.raises(FloatingPointError, match="the training losses are nan and nan"):
        evidence.twins.train_twins(1e-6, make_optimizer, 0, make_problem=failing)
