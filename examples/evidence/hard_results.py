"""How the rule did on the hard tasks, without and with probes, against bare Adam at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from comparing import LARGEST_SHORTFALL, is_within, margin, mean_lack
from further.judged import JUDGED
from further.tasks import CHOSEN_ON
from hard_tasks import (
    BASE,
    CAP,
    HARD_TASKS,
    LEARNING_RATES,
    NEW_SEEDS,
    SITUATIONS,
    by_slopes,
    with_rule,
)
from measures import gain_over
from sections import signed, table

from momo_wrap import TrustedMoMo, sweep
from momo_wrap.sweep.comparing import medians

SPLITS = {"chosen on": CHOSEN_ON, "judged on": JUDGED}
LOSSES, PROBES = with_rule(BASE, probes=False), with_rule(BASE, probes=True)
SLOPES = by_slopes(BASE)
FORMS = {LOSSES: "without probes", PROBES: "with probes", SLOPES: "with SlopeTrust"}
AIM = 28 / 30  # the share of hard tasks to be near on
AIM_WITHOUT = 25 / 30  # the same without probes


@dataclass(frozen=True)
class Outcome:
    """How runs of a task came out, as medians over seeds.

    Attributes:
        is_score: Whether a score counts, or else the loss.
        bare: What bare Adam reaches, by learning rate; ±inf where it failed.
        best_lr: Where that is best.
        gains: By method of `FORMS`, how much better it is than bare Adam at its best, in points or
            % of loss; -inf if it failed.
        failed: By method, the number of seeds that failed.
    """

    is_score: bool
    bare: dict[float, float]
    best_lr: float
    gains: dict[str, float]
    failed: dict[str, int]

    def bare_gain(self, lr: float) -> float:
        """Return how much better bare Adam is at a learning rate than at its best."""
        return gain_over(self.bare[lr], self.bare[self.best_lr], is_score=self.is_score)

    def units(self, gain: float) -> float:
        """Return a gain in units of what is near."""
        return gain / margin(is_score=self.is_score)

    def is_near(self, method: str) -> bool:
        """Tell whether a method is within 1 point or 2 %."""
        return is_within(self.gains[method], margin(is_score=self.is_score))


Outcomes = Mapping[str, Outcome]


def outcomes(results: pd.DataFrame) -> dict[str, Outcome]:
    """Return how all tasks came out of which no run is missing, in their order."""
    wanted = {BASE: LEARNING_RATES, LOSSES: [CAP], PROBES: [CAP], SLOPES: [CAP]}
    needed = sum(len(rates) for rates in wanted.values()) * len(NEW_SEEDS)
    is_wanted = results["seed"].isin(NEW_SEEDS) & (
        pd.concat(
            [(results["optimizer"] == m) & results["lr"].isin(r) for m, r in wanted.items()], axis=1
        ).any(axis=1)
    )
    parts = dict(iter(results[is_wanted].groupby("task")))
    return {t: _outcome(parts[t], t) for t in SITUATIONS if len(parts.get(t, ())) == needed}


def _outcome(results: pd.DataFrame, task: str) -> Outcome:
    is_score = bool(results["score"].notna().any())
    column, is_bare = "score" if is_score else "loss", results["optimizer"] == BASE
    tuned = medians(results[is_bare], task, column, is_score)[BASE]
    own = medians(results[~is_bare], task, column, is_score).loc[CAP]
    bare = {lr: float(tuned[lr]) for lr in LEARNING_RATES}
    best_lr = (max if is_score else min)(bare, key=bare.__getitem__)
    failed = results[results["status"] != "ok"]["optimizer"].value_counts()
    return Outcome(
        is_score,
        bare,
        best_lr,
        {m: gain_over(float(own[m]), bare[best_lr], is_score=is_score) for m in FORMS},
        {m: int(failed.get(m, 0)) for m in FORMS},
    )


def section(path: Path = HARD_TASKS) -> str:
    """Return the counts, what probes cost, what speaks against them, and all tasks.

    Args:
        path: The results of hard_tasks.py.
    """
    results = sweep.load(path) if path.exists() else None
    found = {} if results is None else outcomes(results)
    if results is None or len(found) < len(SITUATIONS):
        return "There are no complete results yet."
    splits = {name: {t: found[t] for t in tasks} for name, tasks in SPLITS.items()}
    parts = [counts(splits), aim(splits), aim_without(found), against(splits), cost(results)]
    for name, of in splits.items():
        title = f"Tasks that the rule was {name}: the gap to tuned bare Adam, in points or %"
        parts.append(f"**{title}**\n\n{every_task(of)}")
    return "\n\n".join(parts)


def counts(splits: Mapping[str, Outcomes]) -> str:
    """Count on how many tasks each is near, for each split; bare Adam at one learning rate too."""
    lr = calibrated_lr(splits["chosen on"])
    head = ["near tuned bare Adam", *(f"{n} ({len(of)})" for n, of in splits.items())]
    head += [f"shortfall, {name}" for name in splits]
    rows = {
        method: [[o.units(o.gains[method]) for o in of.values()] for of in splits.values()]
        for method in FORMS
    }
    rows[f"{BASE}, bare, at {lr:g}"] = [
        [o.units(o.bare_gain(lr)) for o in of.values()] for of in splits.values()
    ]
    return table(head, [[name, *_counted(parts)] for name, parts in rows.items()])


def _counted(parts: list[list[float]]) -> list[str]:
    """Return how many gains, in units of what is near, are near, and the mean shortfalls."""
    near = [f"{sum(is_within(unit, 1.0) for unit in units)} of {len(units)}" for units in parts]
    return [*near, *(f"{mean_lack(units):.1f}" for units in parts)]


def calibrated_lr(found: Outcomes) -> float:
    """Return the learning rate at which bare Adam has the smallest mean shortfall."""
    return min(
        LEARNING_RATES,
        key=lambda lr: mean_lack(o.units(o.bare_gain(lr)) for o in found.values()),
    )


def aim(splits: Mapping[str, Outcomes]) -> str:
    """Hold the shares that are near with probes against the aim."""
    parts = {name: (_near(of), len(of)) for name, of in splits.items()}
    told = " and ".join(
        f"{near} of the {count} that it was {name} ({100 * near / count:.1f} %)"
        for name, (near, count) in parts.items()
    )
    is_reached = all(near / count >= AIM for near, count in parts.values())
    return (
        f"The aim is to be near, with probes, on 28 of 30 such tasks ({100 * AIM:.1f} %). It is "
        f"{'reached' if is_reached else '**missed**'}: the rule is near on {told}."
        f"{'' if is_reached else ' One setting is not right everywhere, with probes neither.'}"
        f"{_easier(*parts.values())}"
    )


def aim_without(found: Outcomes) -> str:
    """Hold the shares that are near without probes against the aim."""
    parts = {method: sum(o.is_near(method) for o in found.values()) for method in (LOSSES, SLOPES)}
    told = ", ".join(
        f"{method} is near on {near} of {len(found)} ({100 * near / len(found):.1f} %)"
        for method, near in parts.items()
    )
    is_reached = max(parts.values()) / len(found) >= AIM_WITHOUT
    return (
        f"Without probes the aim is 25 of 30 ({100 * AIM_WITHOUT:.1f} %). It is "
        f"{'reached' if is_reached else '**missed**'}: {told}."
    )


def _easier(chosen: tuple[int, int], judged: tuple[int, int]) -> str:
    """Warn of reading much into a share on new tasks that is the higher one."""
    if judged[0] / judged[1] <= chosen[0] / chosen[1]:
        return ""
    near, count = chosen[0] + judged[0], chosen[1] + judged[1]
    return (
        f" On all together it is near on {near} of {count} ({100 * near / count:.1f} %). The tasks "
        "that it was judged on are the easier ones for it: their share alone is no estimate for "
        "other hard tasks."
    )


def _near(found: Outcomes) -> int:
    return sum(outcome.is_near(PROBES) for outcome in found.values())


def against(splits: Mapping[str, Outcomes]) -> str:
    """List where the rule is not near with probes, fails, or is worse than without."""
    found = {task: outcome for of in splits.values() for task, outcome in of.items()}
    missed = {task: o for task, o in found.items() if not o.is_near(PROBES)}
    far = [t for t, o in missed.items() if o.units(o.gains[PROBES]) < -LARGEST_SHORTFALL]
    worse = [t for t, o in found.items() if not is_within(_more(o), 1.0)]
    better = [t for t, o in found.items() if not is_within(-_more(o), 1.0)]
    lines = {
        f"Not near with probes, {name}": "; ".join(_told(t, of[t]) for t in of if t in missed)
        for name, of in splits.items()
    }
    lines[f"More than {LARGEST_SHORTFALL:g} times as far as near is"] = "; ".join(far)
    lines["Near without probes, not with them"] = "; ".join(
        task for task, o in missed.items() if o.is_near(LOSSES)
    )
    lines["Worse with probes than without, by more than 1 point or 2 %"] = "; ".join(
        f"{task} ({_gap(found[task], LOSSES)} to {_gap(found[task], PROBES)})" for task in worse
    )
    lines["Better with probes by as much"] = f"{len(better)} of {len(found)} tasks"
    for method, form in FORMS.items():
        lines[f"Seeds of {len(NEW_SEEDS)} that failed {form}"] = "; ".join(
            f"{task} ({o.failed[method]})" for task, o in found.items() if o.failed[method]
        )
    return "\n".join(f"- {title}: {told or 'none'}" for title, told in lines.items())


def _more(outcome: Outcome) -> float:
    """Return how much better the rule is with probes than without, in units of what is near."""
    gains = [outcome.gains[method] for method in (PROBES, LOSSES)]
    if not any(map(math.isfinite, gains)):
        return 0.0
    return outcome.units(gains[0] - gains[1])


def _told(task: str, outcome: Outcome) -> str:
    gap = _gap(outcome, PROBES)
    unit = " points" if outcome.is_score else " %"
    return f"{task} ({gap}{unit if math.isfinite(outcome.gains[PROBES]) else ''})"


def cost(results: pd.DataFrame) -> str:
    """Tell how many evaluations the probes took, and what share of the run that is."""
    rows = results[(results["optimizer"] == PROBES) & (results["status"] == "ok")]
    steps, evaluations = rows["steps"].sum(), rows["probe_evaluations"].sum()
    shares = rows.groupby("task")["probe_evaluations"].sum() / rows.groupby("task")["steps"].sum()
    most, every = shares.idxmax(), TrustedMoMo().every
    return (
        f"What probes cost: the rule asks for those of the first {4 * every:g} steps and then of "
        f"each {every:g}th, here {evaluations:,.0f} evaluations of the loss in {steps:,.0f} steps. "
        "Where a backward pass costs as much as two forward passes, they add "
        f"{_of_pass(evaluations / steps)} to all forward and backward passes; most for {most}, "
        f"{_of_pass(shares[most])}; in a long run {_of_pass(1 / every)}. Random numbers in the "
        "loss, as of dropout, double that."
    )


def _of_pass(evaluations: float) -> str:
    """Return the share of forward and backward passes that evaluations are, from those per step."""
    return f"{100 * evaluations / 3:.1f} %"


def every_task(found: Outcomes) -> str:
    """Give what bare Adam reaches at its best on each task, and the gap to it."""
    head = ["task", "judged by", "tuned bare Adam", *FORMS.values()]
    rows = [
        [
            task,
            "score" if o.is_score else "loss",
            f"{o.bare[o.best_lr]:.3g} at {o.best_lr:g}",
            *(f"**{_gap(o, m)}**" if o.is_near(m) else _gap(o, m) for m in FORMS),
        ]
        for task, o in found.items()
    ]
    return table(head, rows, texts=2)


def _gap(outcome: Outcome, method: str) -> str:
    return signed(outcome.gains[method])
