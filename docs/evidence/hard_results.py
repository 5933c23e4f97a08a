"""How Adam with TrustedMoMo did on the hard tasks, against bare Adam at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from docs.evidence.comparing import LARGEST_SHORTFALL, is_within, margin, mean_lack
from docs.evidence.further.judged import JUDGED
from docs.evidence.further.new import NEW
from docs.evidence.further.tasks import CHOSEN_ON
from docs.evidence.hard_tasks import (
    BASE,
    CAP,
    HARD_TASKS,
    LEARNING_RATES,
    NEW_SEEDS,
    SITUATIONS,
    WRAPPED,
)
from docs.evidence.measures import gain_over
from docs.evidence.sections import signed, table
from momo_wrap import sweep
from momo_wrap.sweep.comparing import medians

# Development tasks: the constants of the rule were chosen with a look at their results.
SPLITS = {"development": {**CHOSEN_ON, **JUDGED}, "new": NEW}
AIM = 25 / 30  # the share of hard tasks to be near on


@dataclass(frozen=True)
class Outcome:
    """How runs of a task came out, as medians over seeds.

    Attributes:
        is_score: Whether a score counts, or else the loss.
        bare: What bare Adam reaches, by learning rate; ±inf where it failed.
        value: What it reaches with the rule; ±inf if that failed.
        failed: The number of seeds that failed with the rule.
    """

    is_score: bool
    bare: dict[float, float]
    value: float
    failed: int

    @property
    def best_lr(self) -> float:
        """The learning rate at which bare Adam is best."""
        return (max if self.is_score else min)(self.bare, key=self.bare.__getitem__)

    @property
    def gain(self) -> float:
        """How much better the rule is than bare Adam at its best, in points or % of loss."""
        return self._gain(self.value)

    @property
    def units(self) -> float:
        """The gain in units."""
        return self.gain / self._margin

    @property
    def is_near(self) -> bool:
        """Whether the rule is within 1 point or 2 %."""
        return is_within(self.gain, self._margin)

    def bare_units(self, lr: float) -> float:
        """Return how much better bare Adam is at a learning rate than at its best, in units."""
        return self._gain(self.bare[lr]) / self._margin

    def _gain(self, value: float) -> float:
        return gain_over(value, self.bare[self.best_lr], is_score=self.is_score)

    @property
    def _margin(self) -> float:
        return margin(is_score=self.is_score)


Outcomes = Mapping[str, Outcome]


def outcomes(results: pd.DataFrame) -> dict[str, Outcome]:
    """Return how all tasks came out of which no run is missing, in their order."""
    method, lr = results["optimizer"], results["lr"]
    is_wanted = (method == BASE) & lr.isin(LEARNING_RATES) | (method == WRAPPED) & (lr == CAP)
    parts = dict(iter(results[is_wanted & results["seed"].isin(NEW_SEEDS)].groupby("task")))
    needed = (len(LEARNING_RATES) + 1) * len(NEW_SEEDS)
    return {t: _outcome(parts[t], t) for t in SITUATIONS if len(parts.get(t, ())) == needed}


def _outcome(results: pd.DataFrame, task: str) -> Outcome:
    is_score = bool(results["score"].notna().any())
    column, is_bare = "score" if is_score else "loss", results["optimizer"] == BASE
    bare = medians(results[is_bare], task, column, is_score)[BASE]
    own = medians(results[~is_bare], task, column, is_score)[WRAPPED]
    failed = int((results.loc[~is_bare, "status"] != "ok").sum())
    return Outcome(
        is_score, {lr: float(bare[lr]) for lr in LEARNING_RATES}, float(own[CAP]), failed
    )


def section(path: Path = HARD_TASKS) -> str:
    """Return the counts, the aim, what speaks against the rule, and all tasks.

    Args:
        path: The results of hard_tasks.py.
    """
    found = outcomes(sweep.load(path)) if path.exists() else {}
    if len(found) < len(SITUATIONS):
        return "There are no complete results yet."
    splits = {name: {t: found[t] for t in tasks} for name, tasks in SPLITS.items()}
    parts = [counts(splits), aim(splits), against(splits)]
    for name, of in splits.items():
        title = f"Tasks, {name}: the gap to tuned bare Adam, in points or %"
        parts.append(f"**{title}**\n\n{every_task(of)}")
    return "\n\n".join(parts)


def counts(splits: Mapping[str, Outcomes]) -> str:
    """Count on how many tasks each is near, for each split; bare Adam at one learning rate too."""
    lr = calibrated_lr(splits["development"])
    head = ["near tuned bare Adam", *(f"{n} ({len(of)})" for n, of in splits.items())]
    head += [f"shortfall, {name}" for name in splits]
    rows = {
        WRAPPED: [[o.units for o in of.values()] for of in splits.values()],
        f"{BASE}, bare, at {lr:g}": [
            [o.bare_units(lr) for o in of.values()] for of in splits.values()
        ],
    }
    return table(head, [[name, *_counted(parts)] for name, parts in rows.items()])


def _counted(parts: list[list[float]]) -> list[str]:
    """Return how many gains are near, and the mean shortfalls, both in units."""
    near = [f"{sum(is_within(unit, 1.0) for unit in units)} of {len(units)}" for units in parts]
    return [*near, *(f"{mean_lack(units):.1f}" for units in parts)]


def calibrated_lr(found: Outcomes) -> float:
    """Return the learning rate at which bare Adam has the smallest mean shortfall."""
    return min(LEARNING_RATES, key=lambda lr: mean_lack(o.bare_units(lr) for o in found.values()))


def aim(splits: Mapping[str, Outcomes]) -> str:
    """Compare the shares of tasks that are near with the aim."""
    near = {name: sum(o.is_near for o in of.values()) for name, of in splits.items()}
    shares = {name: near[name] / len(of) for name, of in splits.items()}
    told = " and on ".join(
        f"{near[name]} of the {len(of)} {name} tasks ({100 * shares[name]:.1f} %)"
        for name, of in reversed([*splits.items()])
    )
    return (
        f"The aim is to be near on 25 of 30 new tasks of these kinds ({100 * AIM:.1f} %), with "
        "no more evaluations than the bare base. It is "
        f"{'reached' if shares['new'] >= AIM else '**missed**'}: the rule is near on {told}."
    )


def against(splits: Mapping[str, Outcomes]) -> str:
    """List where the rule is not near, where it is far, and where seeds failed."""
    found = {task: outcome for of in splits.values() for task, outcome in of.items()}
    lines = {
        f"Not near, {name}": [_told(t, o) for t, o in of.items() if not o.is_near]
        for name, of in splits.items()
    }
    lines[f"Shortfall above {LARGEST_SHORTFALL:g} units"] = [
        task for task, o in found.items() if o.units < -LARGEST_SHORTFALL
    ]
    lines[f"Seeds of {len(NEW_SEEDS)} that failed"] = [
        f"{task} ({o.failed})" for task, o in found.items() if o.failed
    ]
    return "\n".join(f"- {title}: {'; '.join(told) or 'none'}" for title, told in lines.items())


def _told(task: str, outcome: Outcome) -> str:
    unit = " points" if outcome.is_score else " %"
    return f"{task} ({signed(outcome.gain)}{unit if math.isfinite(outcome.gain) else ''})"


def every_task(found: Outcomes) -> str:
    """Give what bare Adam reaches at its best on each task, and the gap to it."""
    rows = [
        [
            task,
            "score" if o.is_score else "loss",
            f"{o.bare[o.best_lr]:.3g} at {o.best_lr:g}",
            f"**{signed(o.gain)}**" if o.is_near else signed(o.gain),
        ]
        for task, o in found.items()
    ]
    return table(["task", "judged by", "tuned bare Adam", "gap"], rows, texts=2)
