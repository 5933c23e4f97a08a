"""The measures of each method on each task: its best value, and its tolerance in decades."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from docs.evidence.methods import BARE, METHODS, TUNERS
from docs.evidence.plan import LEARNING_RATES, SEEDS
from docs.evidence.tasks import SCORED, TASKS
from momo_wrap import sweep
from momo_wrap.sweep.comparing import medians, values_by_seed

RULES = ("MoMo", "TrustedMoMo")
# The bare optimizer that a tuner is compared with.
LIKE = {
    "Prodigy": "Adam",
    "D-Adaptation": "Adam",
    "Mechanic": "AdamW",
    "schedule-free AdamW": "AdamW",
    "schedule-free SGD": "SGD-M",
    "schedule-free Prodigy": "Adam",
}
assert LIKE.keys() == TUNERS.keys()


@dataclass(frozen=True)
class Margin:
    """The margin to the best value: a difference in score, or a share of the best loss."""

    score: float
    loss: float

    def __str__(self) -> str:
        points = f"{100 * self.score:g} point{'s' * (self.score != 0.01)}"
        return f"{points} / {100 * self.loss:g} %"


WIDE = Margin(score=0.02, loss=0.05)
STRICT = Margin(score=0.01, loss=0.02)
# A base that goes less of the way from the untrained model to the best bare one does not train.
LEAST_PROGRESS = 0.1


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        decades: The tolerance at the wide margin, -inf where no learning rate is tolerated.
        strict: That at the strict margin.
        own: That at the wide margin of the best of the same base, bare or wrapped, instead of the
            best of all methods; NaN for tuners.
        highest: The highest learning rate that is tolerated at the wide margin, or NaN.
        best: The best median over seeds.
        best_lr: Where it is.
        deviation: The standard deviation over seeds there, failed runs left out.
    """

    decades: float
    strict: float
    own: float
    highest: float
    best: float
    best_lr: float
    deviation: float


class Comparison:
    """The results of one schedule, as far as they are complete.

    A method counts on a task if all its runs are there. A task counts if all bare optimizers do.

    Args:
        results: What `momo_wrap.sweep.load` returned; of anything else than `TASKS` and `METHODS`
            nothing is taken.
        rates: The learning rates of the grid.
        seeds: The seeds.

    Attributes:
        tasks: The tasks that count, in the order of `TASKS`.
        missing: For each task, the methods of which runs are missing.
        failed: How many of the runs that count diverged or raised.
        runs: How many count.
        cells: What was measured, by method and task.
        medians: For each task, medians over seeds by learning rate and method; ±inf if failed.
        by_seed: For each task, the values by learning rate, and by method and seed.
        progress: By bare base and task, how far its best gets on the way from the untrained model,
            which is the worst bare one at the lowest learning rate, to the best bare one; NaN where
            none gets anywhere.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        rates: Sequence[float] = LEARNING_RATES,
        seeds: Sequence[int] = SEEDS,
    ) -> None:
        results = results[results["lr"].isin(list(rates)) & results["seed"].isin(list(seeds))]
        counts = results.groupby(["task", "optimizer"]).size().to_dict()
        needed = len(rates) * len(seeds)
        self.missing = {
            task: [method for method in METHODS if counts.get((task, method), 0) < needed]
            for task in TASKS
        }
        self.tasks = [task for task in TASKS if not set(BARE) & set(self.missing[task])]
        self.cells: dict[tuple[str, str], Cell] = {}
        self.medians: dict[str, pd.DataFrame] = {}
        self.by_seed: dict[str, pd.DataFrame] = {}
        self.progress: dict[tuple[str, str], float] = {}
        self.runs = self.failed = 0
        for task in self.tasks:
            self._add(task, results[results["task"] == task])

    def _add(self, task: str, results: pd.DataFrame) -> None:
        present = [method for method in METHODS if method not in self.missing[task]]
        results = results[results["optimizer"].isin(present)]
        self.runs += len(results)
        self.failed += int((results["status"] != "ok").sum())
        column, is_score = judged_by(task), task in SCORED
        self.by_seed[task] = values_by_seed(results, task, column, is_score)
        self.medians[task] = medians(results, task, column, is_score)
        wide, strict = (
            sweep.tolerance(results, self._margin(task, present, margin), is_score, column)
            for margin in (WIDE, STRICT)
        )
        at_strict = strict.set_index("optimizer")["decades"]
        own = self._own_tolerances(task, results)
        for row in wide.itertuples():
            self.cells[row.optimizer, task] = Cell(
                decades=_rounded(row.decades),
                strict=_rounded(at_strict[row.optimizer]),
                own=own.get(row.optimizer, math.nan),
                highest=float(row.highest),
                best=float(row.best),
                best_lr=float(row.best_lr),
                deviation=self.deviation(row.optimizer, task, row.best_lr),
            )
        self._add_progress(task)

    def _add_progress(self, task: str) -> None:
        lowest = self.medians[task][list(BARE)].iloc[0]
        known = lowest[np.isfinite(lowest)]
        untrained = float(known.min() if task in SCORED else known.max())
        way = self.best_bare(task) - untrained
        for base in BARE:
            gone = self.cells[base, task].best - untrained
            self.progress[base, task] = gone / way if way else math.nan

    def _own_tolerances(self, task: str, results: pd.DataFrame) -> dict[str, float]:
        """Return the tolerances where each base is compared only with its wrapped forms."""
        found: dict[str, float] = {}
        for base in BARE:
            family = [base, *(f"{base} + {rule}" for rule in RULES)]
            present = [method for method in family if method in self.medians[task]]
            chosen = results[results["optimizer"].isin(present)]
            margin = self._margin(task, present)
            widths = sweep.tolerance(chosen, margin, task in SCORED, judged_by(task))
            found |= {row.optimizer: _rounded(row.decades) for row in widths.itertuples()}
        return found

    def _margin(self, task: str, methods: list[str], margin: Margin = WIDE) -> float:
        if task in SCORED:
            return margin.score
        return margin.loss * float(self.medians[task][methods].to_numpy().min())

    def near_best(self, task: str) -> tuple[float, float]:
        """Return both ends of the tolerated interval at the wide margin."""
        values, margin = self.medians[task].to_numpy(), self._margin(task, [*self.medians[task]])
        if task in SCORED:
            return float(values.max()) - margin, float(values.max())
        return float(values.min()), float(values.min()) + margin

    def methods(self) -> list[str]:
        """Return the methods that count on some task, in the order of `METHODS`."""
        return [m for m in METHODS if any((m, task) in self.cells for task in self.tasks)]

    def common(self, methods: Iterable[str], tasks: Iterable[str] | None = None) -> list[str]:
        """Return the tasks, of those given or of all, on which all of these methods count."""
        chosen = self.tasks if tasks is None else [t for t in tasks if t in self.tasks]
        needed = list(methods)
        return [task for task in chosen if all((m, task) in self.cells for m in needed)]

    def mean_width(self, method: str, tasks: Iterable[str], kind: str = "decades") -> float:
        """Return a mean tolerance, NaN of no tasks; where no learning rate is tolerated, 0 counts.

        Args:
            method: The method.
            tasks: The tasks.
            kind: Which of the tolerances of `Cell`.
        """
        widths = [float(getattr(self.cells[method, task], kind)) for task in tasks]
        return mean(0.0 if width == -math.inf else width for width in widths)

    def value(self, method: str, task: str, lr: float) -> float:
        """Return the median over seeds at a learning rate of the grid."""
        return float(self.medians[task].loc[lr, method])

    def deviation(self, method: str, task: str, lr: float) -> float:
        """Return the standard deviation over the seeds that did not fail; NaN of less than two."""
        values = self.by_seed[task][method].loc[lr]
        return float(values[np.isfinite(values)].std(ddof=1))

    def trains(self, method: str, task: str) -> bool:
        """Tell whether the bare base of a method trains on a task at any learning rate."""
        return self.progress[bare_of(method), task] > LEAST_PROGRESS

    def best_bare(self, task: str) -> float:
        """Return the best that any bare optimizer reaches at any learning rate."""
        best: Callable[..., float] = max if task in SCORED else min
        return best(self.cells[base, task].best for base in BARE)


def _rounded(decades: float) -> float:
    """Return decades as if the learning rates were not rounded: they would be 2/3 apart."""
    return round(3 * decades) / 3 if math.isfinite(decades) else float(decades)


def mean(values: Iterable[float]) -> float:
    """Return the mean, NaN of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def judged_by(task: str) -> str:
    """Return the column with the value of a run of a task."""
    return "score" if task in SCORED else "loss"


def gain(task: str, value: float, reference: float) -> float:
    """Return how much better a value is; see `gain_over`."""
    return gain_over(value, reference, is_score=task in SCORED)


def gain_over(value: float, reference: float, *, is_score: bool) -> float:
    """Return how much better a value is: in points of score, or in % of the reference's loss.

    Against a reference that failed it is infinite, or 0 if the value is a failure too.
    """
    if not math.isfinite(reference):
        return math.inf if math.isfinite(value) else 0.0
    if is_score:
        return 100 * (value - reference)
    return 100 * (reference - value) / reference


def bare_of(method: str) -> str:
    """Return the bare optimizer that a wrapped one or a tuner is to be compared with."""
    return LIKE.get(method) or method.split(" + ")[0]


def wrapped_by(rule: str) -> list[str]:
    """Return all bases wrapped with a rule."""
    return [f"{base} + {rule}" for base in BARE]


def summary(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """Return the measurements, a row for each schedule, task and method."""
    rows = [
        {"schedule": name, "task": task, "method": method, **vars(c.cells[method, task])}
        for name, c in comparisons.items()
        for task in c.tasks
        for method in c.methods()
        if (method, task) in c.cells
    ]
    return pd.DataFrame(rows)
