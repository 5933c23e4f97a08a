"""Steps to a target, and performance profiles, in docs/evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from momo_wrap.sweep.results_file import COLUMNS
from tests.evidence_results import CONV, RATES, TEXT, compare, curve

TUMOURS = "tumours, logistic"

for needed in ("sklearn", "matplotlib", "schedulefree", "prodigyopt", "prodigyplus"):
    pytest.importorskip(needed, reason="the examples and test extras are not installed")


@pytest.fixture
def evidence() -> Any:
    """The modules, by name."""
    names = ["comparing", "measures", "methods", "plan", "problems", "profile_figure"]
    names += ["profiles", "steps_to_target", "tasks"]
    return SimpleNamespace(**{n: import_module(f"docs.evidence.{n}") for n in names})


def test_moments_are_evenly_spaced_and_end_with_the_run(evidence: Any) -> None:
    assert evidence.problems.moments(10, 4) == [3, 5, 8, 10]
    assert evidence.problems.moments(200, 20) == list(range(10, 201, 10))
    assert evidence.problems.moments(200, 0) == []


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (TUMOURS, "Adam"),
        pytest.param("digits, ResNet", "Adam + TrustedMoMo", marks=pytest.mark.slow),
    ],
)
def test_evaluations_change_nothing_of_the_run(evidence: Any, task: str, method: str) -> None:
    """Nor with batch normalisation, whose averages an evaluation must not touch."""
    make, factory = evidence.tasks.TASKS[task], evidence.methods.METHODS[method]
    bare = evidence.problems.train(0.01, factory, 0, make_problem=make)
    judged = evidence.problems.train(0.01, factory, 0, make_problem=make, evaluations=20)
    values = [float(value) for value in judged.pop("evaluations").split()]
    assert judged.pop("steps") == make().steps
    assert judged == bare
    assert len(values) == 20
    assert values[-1] == pytest.approx(float(bare["score"]), rel=1e-4)
    assert values[0] < values[-1]


def test_schedule_free_optimizers_are_judged_where_they_evaluate(evidence: Any) -> None:
    """And go on to train where they trained, but for rounding."""
    make, factory = evidence.tasks.TASKS[TUMOURS], evidence.methods.METHODS["schedule-free AdamW"]
    bare = evidence.problems.train(0.01, factory, 0, make_problem=make)
    judged = evidence.problems.train(0.01, factory, 0, make_problem=make, evaluations=20)
    assert float(judged["loss"]) == pytest.approx(float(bare["loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "values", "step"),
    [
        (CONV, [0.5, 0.89, 0.92, 0.6], 50),  # within 1 point
        (CONV, [0.5, 0.889, 0.92, 0.6], 75),
        (CONV, [0.5, 0.6, 0.7, 0.8], math.inf),
        (TEXT, [2.0, 1.85, 1.83, 1.8], 75),  # 1.836 is 2 % above
        (TEXT, [1.5, 9.0, math.nan, math.nan], 25),
    ],
)
def test_first_step_near_the_target(
    evidence: Any, task: str, values: list[float], step: float
) -> None:
    tuned = 0.9 if task == CONV else 1.8
    assert evidence.steps_to_target.first_step(task, values, 100, tuned) == step


def test_scores_of_known_times(evidence: Any) -> None:
    times = {
        "a": {"one": 10.0, "two": 40.0, "three": math.inf},
        "b": {"one": 20.0, "two": 10.0, "three": math.inf},
        "c": {"one": math.inf, "two": 50.0, "three": math.inf},
    }
    found = evidence.steps_to_target.ratios(times)
    assert found["a"] == {"one": 1.0, "two": 4.0, "three": math.inf}
    assert found["b"] == {"one": 2.0, "two": 1.0, "three": math.inf}
    scores = {m: evidence.steps_to_target.score(of.values()) for m, of in found.items()}
    assert scores == {"a": pytest.approx(1 / 3), "b": pytest.approx(5 / 9), "c": 0.0}
    profile = evidence.steps_to_target.profile(found["b"].values(), [1.0, 1.9, 2.0, 4.0])
    assert profile == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_score_is_the_integral_of_the_profile(evidence: Any) -> None:
    drawn = np.random.default_rng(0).uniform(1, 8, size=9).tolist()
    found = [1.0, *drawn, math.inf]
    taus = np.linspace(1, 4, 30001)
    profile = evidence.steps_to_target.profile(found, taus)
    integral = np.trapezoid(profile, taus) / 3
    assert evidence.steps_to_target.score(found) == pytest.approx(integral, abs=1e-4)


def complete(evidence: Any) -> Any:
    """Results on all tasks, in which every base is best at the learning rate 0.01."""
    tasks = {}
    for task in evidence.tasks.TASKS:
        scored = task in evidence.tasks.SCORED
        values = curve(0.2, 0.5, 0.8, 0.9, rest=0.5) if scored else curve(9, 5, 4, 2, rest=5)
        tasks[task] = dict.fromkeys(evidence.methods.BARE, values)
    return compare(evidence, tasks)


def save(evidence: Any, path: Path, methods: Mapping[str, tuple[float, list[int]]]) -> None:
    """Write results: the learning rate, and by seed at which of 4 evaluations a run arrives."""
    rows = []
    for method, (lr, arrivals) in methods.items():
        for task in evidence.tasks.TASKS:
            good, bad = (0.9, 0.3) if task in evidence.tasks.SCORED else (2.0, 6.0)
            for seed, arrival in enumerate(arrivals):
                values = [good if k >= arrival else bad for k in range(1, 5)]
                row = dict.fromkeys(COLUMNS, "") | {"task": task, "optimizer": method, "lr": lr}
                text = " ".join(map(str, values))
                results = f'{{"steps": 100, "evaluations": "{text}"}}'
                row |= {"seed": seed, "status": "ok", "results": results, "settings": "{}"}
                rows.append({**row, "loss": 1.0})
    pd.DataFrame(rows).to_csv(path, index=False)


def test_settings_are_one_for_all_tasks(evidence: Any) -> None:
    lrs = evidence.profiles.settings(complete(evidence))
    assert list(lrs) == list(evidence.methods.METHODS)
    assert {lrs[base] for base in evidence.methods.BARE} == {RATES[3]}
    assert lrs["Adam + TrustedMoMo"] == 100.0
    assert lrs["schedule-free Prodigy"] == 1.0


def test_times_are_medians_of_complete_methods(evidence: Any, tmp_path: Path) -> None:
    path, comparison = tmp_path / "profiles.csv", complete(evidence)
    methods = {
        "Adam": (RATES[3], [2, 1, 4]),
        "Adam + TrustedMoMo": (100.0, [4, 9, 9]),
        "Lion": (1.0, [1, 1, 1]),  # at another learning rate than it is run at now
        "Muon": (RATES[3], [1, 1]),
    }
    assert evidence.steps_to_target.race(comparison, path) is None
    save(evidence, path, methods)
    found = evidence.steps_to_target.race(comparison, path)
    assert list(found.times) == ["Adam", "Adam + TrustedMoMo"]
    assert set(found.times["Adam"].values()) == {50.0}
    assert set(found.times["Adam + TrustedMoMo"].values()) == {math.inf}
    text = evidence.steps_to_target.section(comparison, path)
    assert "| Adam | 0.01 | 10 of 10 | 1.00 | 1.00 |" in text
    assert "| Adam + TrustedMoMo | 100 | 0 of 10 | 0.00 | 0.00 |" in text
    results = pd.read_csv(path)
    failed = (results["optimizer"] == "Adam") & (results["seed"] < 2) & (results["task"] == CONV)
    results.loc[failed, "status"] = "diverged"
    results.assign(results="{}").where(failed, results).to_csv(path, index=False)
    times = evidence.steps_to_target.race(comparison, path).times["Adam"]
    assert {task for task, time in times.items() if time == math.inf} == {CONV}


def test_each_method_is_run_at_its_setting(
    evidence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, comparison = tmp_path / "profiles.csv", complete(evidence)
    save(evidence, path, {"Adam": (RATES[3], [1] * 3), "Adam + TrustedMoMo": (100.0, [1] * 3)})
    asked: dict[str, float] = {}

    def run(tasks: Any, methods: Any, lrs: Any, seeds: Any, where: Path, **_: Any) -> None:
        assert (list(tasks), seeds, where) == (list(evidence.tasks.TASKS), [0, 1, 2], path)
        assert not asked.keys() & methods.keys()
        asked.update(dict.fromkeys(methods, lrs[0]))

    monkeypatch.setattr(evidence.profiles.sweep, "run", run)
    evidence.profiles.run(comparison, path, again="TrustedMoMo")
    assert asked == evidence.profiles.settings(comparison)
    assert set(pd.read_csv(path)["optimizer"]) == {"Adam"}


def test_figure_draws_the_profiles(evidence: Any, tmp_path: Path) -> None:
    path = tmp_path / "profiles.csv"
    methods = {"Adam": (RATES[3], [2] * 3), "Adam + TrustedMoMo": (100.0, [4] * 3)}
    save(evidence, path, methods | {"Mechanic": (0.01, [1] * 3)})
    race = evidence.steps_to_target.race(complete(evidence), path)
    panels = evidence.profile_figure.draw(race).axes
    bases = list(evidence.methods.BARE)
    assert [axes.get_title() for axes in panels] == [*bases, "tune themselves", ""]
    bare, trusted = panels[bases.index("Adam")].lines
    for line, ratio in ((bare, 2.0), (trusted, 4.0)):
        taus, shares = np.array(line.get_xdata()), np.array(line.get_ydata())
        assert taus[shares > 0.5].min() == pytest.approx(ratio)
    (mechanic,) = panels[6].lines
    assert mechanic.get_label() == "Mechanic"
    assert min(mechanic.get_ydata()) == 1.0
