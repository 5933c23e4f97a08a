"""The hard tasks in examples/evidence, with and without probes, and what the page tells of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from momo_wrap.sweep.results_file import COLUMNS
from tests.evidence_results import compare, curve
from tests.scripts import EXAMPLES, load_script

for needed in ("sklearn", "matplotlib", "schedulefree", "prodigyopt", "prodigyplus"):
    pytest.importorskip(needed, reason="the examples and test extras are not installed")

TUMOURS = "tumours, logistic"
CHOSEN_ON = ["heavy tails, perceptron", "Poisson equation", "coordinate network"]
CHOSEN_ON += ["clipped, perceptron", "noisy labels, perceptron", "dropout"]
CHOSEN_ON += ["variational autoencoder", "self-distillation", "text, GRU", "curriculum", "bandit"]
CHOSEN_ON += ["adversarial, ring", "heavy tails, linear", "heat equation", "deep linear"]
CHOSEN_ON += ["clipped, conv net", "noisy labels, conv net", "batches of one"]
CHOSEN_ON += ["batch normalisation", "contrastive", "self-distillation, slow"]
CHOSEN_ON += ["text, clipped LSTM", "text, tied GPT", "changing weights", "actor-critic"]
CHOSEN_ON += ["adversarial, correlated"]
JUDGED = ["outliers, Friedman", "screened Poisson equation", "adapter, batches of four"]
JUDGED += ["rotating weights", "clipped, waves", "random labels, clusters", "documents, dropout"]
JUDGED += ["separable, logistic", "memory, plain RNN", "sorting, transformer"]
JUDGED += ["bootstrap, gratings", "steering, policy gradient", "attacked classifier"]
JUDGED += ["blobs, variational"]


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules, by name."""
    names = ["hard_results", "hard_tasks", "measures", "methods", "probed_results", "problems"]
    names += ["report", "tasks"]
    return SimpleNamespace(**{n: load_script(f"evidence/{n}", monkeypatch) for n in names})


def shortened(make: Any, steps: int, made: list[Any]) -> Any:
    situation = make()
    made.append(situation)
    return dataclasses.replace(situation, batches=islice(situation.batches, steps))


def trusted(evidence: Any, task: str) -> Any:
    rule = partial(evidence.hard_tasks.TrustedMoMo, evidence.hard_tasks.BOUNDS.get(task, 0.0))
    return partial(evidence.methods.wrapped, base=torch.optim.Adam, rule=rule)


def test_tasks_are_chosen_or_judged_on(evidence: Any) -> None:
    assert list(evidence.hard_tasks.CHOSEN_ON) == CHOSEN_ON
    assert list(evidence.hard_tasks.JUDGED) == JUDGED
    assert list(evidence.hard_tasks.SITUATIONS) == CHOSEN_ON + JUDGED
    assert set(evidence.hard_tasks.BOUNDS) < set(CHOSEN_ON + JUDGED)


@pytest.mark.parametrize("task", CHOSEN_ON + JUDGED)
def test_every_parameter_moves_and_the_model_is_judged(task: str, evidence: Any) -> None:
    """After three steps, of which the second and the third probe the one before."""
    made: list[Any] = []
    before: list[torch.Tensor] = []

    def make() -> Any:
        situation = shortened(evidence.hard_tasks.SITUATIONS[task], 3, made)
        before.extend(p.detach().clone() for p in situation.model.parameters())
        return situation

    train = evidence.hard_tasks.situations.train
    found = train(100.0, trusted(evidence, task), 3, make_situation=make, probes=True)
    (value,) = (float(found[name]) for name in ("loss", "score") if name in found)
    assert math.isfinite(value)
    players = len(made[0].players) or 1
    assert found["steps"] == 3 * players
    per_probe = 2 if "dropout" in task else 1  # with the same random numbers
    assert found["probe_evaluations"] == 2 * players * per_probe
    pairs = zip(made[0].model.parameters(), before, strict=True)
    assert all(not torch.equal(now, then) for now, then in pairs)


@pytest.mark.parametrize("task", ["curriculum", "adversarial, ring"])
def test_bare_optimizers_get_no_probe(task: str, evidence: Any) -> None:
    """Nor do wrapped ones that are to have none."""
    make = partial(shortened, evidence.hard_tasks.SITUATIONS[task], 3, [])
    train = partial(evidence.hard_tasks.situations.train, make_situation=make)
    assert train(1e-3, torch.optim.Adam, 3, probes=True)["probe_evaluations"] == 0
    assert train(1.0, trusted(evidence, task), 3, probes=False)["probe_evaluations"] == 0


def test_probes_change_nothing_for_a_rule_that_wants_none(evidence: Any) -> None:
    train = partial(evidence.problems.train, make_problem=evidence.tasks.TASKS[TUMOURS])
    factory = evidence.methods.METHODS["Adam + MoMo"]
    probed = train(0.01, factory, 0, probes=True)
    assert (probed.pop("probe_evaluations"), probed.pop("steps")) == (0, 300)
    assert probed == train(0.01, factory, 0)


def test_probed_steps_of_the_ten_tasks_are_counted(evidence: Any) -> None:
    make = evidence.tasks.TASKS[TUMOURS]
    factory = evidence.methods.METHODS["Adam + TrustedMoMo"]
    found = evidence.problems.train(100.0, factory, 0, make_problem=make, probes=True)
    due = [step for step in range(1, make().steps) if step <= 40 or step % 10 == 0]
    assert found["probe_evaluations"] == len(due)


def save(path: Path, values: Mapping[str, Mapping[tuple[str, float], Sequence[float]]]) -> None:
    """Write results: by task, method and learning rate, the values of seeds; NaN is a failure."""
    rows = []
    for task, of in values.items():
        for (method, lr), seeds in of.items():
            for seed, value in enumerate(seeds):
                row = dict.fromkeys(COLUMNS, "") | {"task": task, "optimizer": method, "lr": lr}
                evaluations = 80 if "probed" in method else 0
                results = f'{{"steps": 400, "probe_evaluations": {evaluations}}}'
                is_ok = math.isfinite(value)
                is_score = value < 1  # those that are made up
                rows.append(
                    {
                        **row,
                        "seed": seed,
                        "status": "ok" if is_ok else "diverged",
                        "score": value if is_score else math.nan,
                        "loss": math.nan if is_score else value,
                        "results": results if is_ok else "{}",
                        "settings": "{}",
                    }
                )
    pd.DataFrame(rows).to_csv(path, index=False)


def save_hard(
    evidence: Any, path: Path, own: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Write complete results, in which bare Adam is best at 0.01, at a loss of 2.

    Args:
        evidence: The modules.
        path: The file.
        own: By task, the values of the rule without and with probes; others reach 2 with both. With
            SlopeTrust all reach 1.9 but for bandit, where it reaches 3.
    """
    hard = evidence.hard_tasks
    bare = dict(zip(hard.LEARNING_RATES, [9.0, 8.0, 5.0, 3.0, 2.0, 4.0, math.nan], strict=True))
    values = {}
    for task in hard.SITUATIONS:
        without, probed = own.get(task, ([2.0] * 3, [2.0] * 3))
        of: dict[tuple[str, float], Sequence[float]]
        of = {("Adam", lr): [value] * 3 for lr, value in bare.items()}
        of |= {("Adam + TrustedMoMo", 100.0): without}
        of |= {("Adam + TrustedMoMo, probed", 100.0): probed}
        values[task] = of | {("Adam + SlopeTrust", 100.0): [3.0 if task == "bandit" else 1.9] * 3}
    save(path, values)
    frame = pd.read_csv(path)
    frame.assign(seed=frame["seed"] + 3).to_csv(path, index=False)


def test_known_outcomes_of_hard_tasks(evidence: Any, tmp_path: Path) -> None:
    """Tasks that are not near: by probes, by losses, by both; and medians decide."""
    path, nan = tmp_path / "hard.csv", math.nan
    save_hard(
        evidence,
        path,
        {
            "bandit": ([2.0] * 3, [2.2] * 3),
            "dropout": ([2.1] * 3, [2.0] * 3),
            "curriculum": ([2.04] * 3, [2.04] * 3),  # 2 %
            "contrastive": ([2.02] * 3, [1.9] * 3),
            "memory, plain RNN": ([nan, nan, 2.0], [2.0, nan, 2.0]),
            "attacked classifier": ([2.0] * 3, [nan] * 3),
        },
    )
    text = evidence.hard_results.section(path)
    assert "| near tuned bare Adam | chosen on (26) | judged on (14) |" in text
    # Shortfalls: 2.5, 1 and 0.5 units over 26 tasks; 5 and 1 with probes; 10 over 14 failed.
    assert "| Adam + TrustedMoMo | 25 of 26 | 13 of 14 | 0.2 | 0.7 |" in text
    assert "| Adam + TrustedMoMo, probed | 25 of 26 | 13 of 14 | 0.2 | 0.7 |" in text
    assert "| Adam + SlopeTrust | 25 of 26 | 14 of 14 | 0.4 | 0.0 |" in text
    assert "Without probes the aim is 25 of 30 (83.3 %). It is reached:" in text
    assert (
        "Adam + TrustedMoMo is near on 38 of 40 (95.0 %), Adam + SlopeTrust is near on 39" in text
    )
    assert "| Adam, bare, at 0.01 | 26 of 26 | 14 of 14 | 0.0 | 0.0 |" in text
    assert "(93.3 %). It is **missed**: the rule is near on 25 of the 26 that it was" in text
    assert "chosen on (96.2 %) and 13 of the 14 that it was judged on (92.9 %)." in text
    assert "are the easier ones" not in text
    assert "| bandit | loss | 2 at 0.01 | **0.0** | −10.0 | −50.0 |" in text
    assert "| dropout | loss | 2 at 0.01 | −5.0 | **0.0** | **+5.0** |" in text
    assert "| curriculum | loss | 2 at 0.01 | **−2.0** | **−2.0** | **+5.0** |" in text
    assert "| memory, plain RNN | loss | 2 at 0.01 | failed | **0.0** | **+5.0** |" in text
    assert "| attacked classifier | loss | 2 at 0.01 | **0.0** | failed | **+5.0** |" in text
    assert "- Not near with probes, chosen on: bandit (−10.0 %)\n" in text
    assert "- Not near with probes, judged on: attacked classifier (failed)\n" in text
    assert "as far as near is: attacked classifier\n" in text
    assert "not with them: bandit; attacked classifier\n" in text
    assert "2 %: bandit (0.0 to −10.0); attacked classifier (0.0 to failed)\n" in text
    assert "Better with probes by as much: 3 of 40 tasks\n" in text
    assert "failed without probes: memory, plain RNN (2)\n" in text
    assert "failed with probes: memory, plain RNN (1); attacked classifier (3)\n" in text
    # 80 evaluations in 400 steps are 0.2 a step, of 3 forward passes.
    assert "they add 6.7 % to all forward and backward passes" in text
    assert "in a long run 3.3 %" in text


def test_aim_is_reached_where_it_is(evidence: Any, tmp_path: Path) -> None:
    path = tmp_path / "hard.csv"
    save_hard(evidence, path, {"bandit": ([2.0] * 3, [2.2] * 3)})
    text = evidence.hard_results.section(path)
    assert "It is reached: the rule is near on 25 of the 26" in text
    assert "14 of the 14 that it was judged on (100.0 %)." in text
    assert "near on 39 of 40 (97.5 %). The tasks that it was judged on are the easier ones" in text


def test_scores_are_compared_in_points(evidence: Any, tmp_path: Path) -> None:
    path, hard = tmp_path / "hard.csv", evidence.hard_tasks
    scores = dict(zip(hard.LEARNING_RATES, [0.1, 0.3, 0.5, 0.8, 0.7, 0.6, 0.2], strict=True))
    of = {("Adam", lr): [value] * 6 for lr, value in scores.items()}
    of |= {("Adam + TrustedMoMo", 100.0): [0.0] * 3 + [0.78, 0.792, 0.9]}
    of |= {("Adam + TrustedMoMo, probed", 100.0): [0.9] * 3 + [0.78, 0.788, 0.9]}
    of |= {("Adam + SlopeTrust", 100.0): [0.0] * 3 + [0.9, 0.81, 0.8]}
    save(path, {"dropout": of})
    found = hard.sweep.load(path)
    (outcome,) = evidence.hard_results.outcomes(found).values()
    assert outcome.is_score
    assert outcome.best_lr == 3e-3
    assert list(outcome.gains.values()) == pytest.approx([-0.8, -1.2, 1.0])
    assert [outcome.is_near(method) for method in outcome.gains] == [True, False, True]
    assert evidence.hard_results.outcomes(found.drop(index=found.index[-1])) == {}
    assert "no complete results" in evidence.hard_results.section(path)
    assert "no complete results" in evidence.hard_results.section(tmp_path / "none.csv")


def complete(evidence: Any) -> Any:
    """Results on the ten tasks: bare 0.9 or 2, at a cap of 100 with the rule 0.895 or 2.2."""
    tasks = {}
    for task in evidence.tasks.TASKS:
        scored = task in evidence.tasks.SCORED
        bare = curve(0.2, 0.5, 0.8, 0.9, rest=0.5) if scored else curve(9, 5, 4, 2, rest=5)
        own = curve(rest=0.895) if scored else curve(rest=2.2)
        bases = evidence.methods.BARE
        tasks[task] = {**dict.fromkeys(bases, bare)}
        tasks[task] |= {f"{base} + TrustedMoMo": own for base in bases}
    return compare(evidence, tasks)


def test_known_outcomes_with_probes_on_ten_tasks(evidence: Any, tmp_path: Path) -> None:
    path, comparison = tmp_path / "probed.csv", complete(evidence)
    values: dict[str, dict[tuple[str, float], list[float]]] = {}
    for task in evidence.tasks.TASKS:
        good, bad = (0.91, 0.8) if task in evidence.tasks.SCORED else (2.0, 6.0)
        of = {(f"{base} + TrustedMoMo, probed", 100.0): [bad, good, good] for base in ("SGD-M",)}
        of |= {(f"{b} + TrustedMoMo, probed", 100.0): [bad, bad, good] for b in ("AdamW", "Lion")}
        of |= {("Muon + TrustedMoMo, probed", 100.0): [math.nan] * 3}
        slopes = {f"{b} + SlopeTrust": [good] * 3 for b in ("SGD-M", "AdamW", "Muon")}
        slopes["Lion + SlopeTrust"] = [bad] * 3
        values[task] = of | {(name, 100.0): its for name, its in slopes.items()}
    save(path, values)
    text = evidence.probed_results.section(comparison, path)
    # Without probes losses fall short by 10 %, 5 units, on 3 tasks, scores by half a unit.
    assert "| SGD-M | 7 of 10 | 1.9 | 10 of 10 | 0.0 | 10 of 10 | 0.0 |" in text
    assert "| AdamW | 7 of 10 | 1.9 | 0 of 10 | 10.0 | 10 of 10 | 0.0 |" in text
    assert "| Lion | 7 of 10 | 1.9 | 0 of 10 | 10.0 | 0 of 10 | 10.0 |" in text
    assert "| SGD-M, with probes | **+1.0** |" in text
    assert "| SGD-M, without probes | **−0.5** |" in text
    assert "| Muon, with probes | failed |" in text
    save(path, {task: of for task, of in values.items() if task != TUMOURS})
    assert "no complete results" in evidence.probed_results.section(comparison, path)


def test_each_task_is_run_with_its_bound(
    evidence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard, bounds, rates = evidence.hard_tasks, {}, {}

    def run(tasks: Any, methods: Any, lrs: Any, seeds: Any, where: Path, **_: Any) -> None:
        for name, make in methods.items():
            optimizer = make([torch.nn.Parameter(torch.ones(2, 2))], 0.1)
            for task, train in tasks.items():
                key = (where.name, name, task)
                assert key not in bounds
                assert seeds == ([3, 4, 5] if where.name == "hard" else [0, 1, 2])
                # On the ten tasks SlopeTrust is given probes, too, and evaluates none.
                gets_probes = "probed" in name or ("Slope" in name and where.name == "probed")
                assert train.keywords.get("probes", False) == gets_probes
                bounds[key] = getattr(getattr(optimizer, "rule", None), "lower_bound", None)
                rates[key] = len(lrs)

    monkeypatch.setattr(hard.sweep, "run", run)
    hard.run(tmp_path / "hard", tmp_path / "probed")
    assert len(bounds) == 4 * 40 + 2 * 4 * 10
    assert sum(rates.values()) * 3 == 40 * 10 * 3 + 2 * 4 * 10 * 3
    expected = {**dict.fromkeys(hard.SITUATIONS, 0.0), **hard.BOUNDS}
    for method in ("Adam + TrustedMoMo", "Adam + TrustedMoMo, probed", "Adam + SlopeTrust"):
        assert {t: bounds["hard", method, t] for t in hard.SITUATIONS} == expected
    assert bounds["hard", "Adam", "bandit"] is None


def test_the_page_has_what_the_results_give(evidence: Any) -> None:
    page = evidence.report.PAGE.read_text(encoding="utf-8")
    found = {
        "hard tasks": evidence.hard_results.section(),
        "probes on ten tasks": evidence.probed_results.section(evidence.report.load()["constant"]),
    }
    for name, text in found.items():
        assert "no complete results" not in text
        assert f"<!-- generated: {name} -->\n\n{text}\n\n<!-- end -->" in page


def test_readme_has_what_the_results_give(evidence: Any) -> None:
    """Of the 40 tasks, how many are near tuned bare Adam."""
    results = evidence.hard_results.sweep.load(evidence.hard_tasks.HARD_TASKS)
    found = evidence.hard_results.outcomes(results)
    counts = {
        method: sum(outcome.is_near(method) for outcome in found.values())
        for method in ("Adam + TrustedMoMo", "Adam + TrustedMoMo, probed", "Adam + SlopeTrust")
    }
    readme = " ".join((EXAMPLES.parent / "README.md").read_text(encoding="utf-8").split())
    without, probed, slopes = counts.values()
    assert f"near tuned Adam on {without} of 40 without probes and on {probed} with them" in readme
    assert f"is near on {slopes} of the 40" in readme
