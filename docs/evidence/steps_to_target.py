"""Performance profiles of the steps to a target, and their score, as AlgoPerf has them.

Dahl et al., "Benchmarking Neural Network Training Algorithms", arXiv 2306.07179, section 4. The
time of a method on a task is the number of steps after which the target is reached first; r is that
over the least that any method needs. The profile ρ(τ) is the share of tasks on which r ≤ τ, and the
score is the mean of ρ over τ from 1 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from docs.evidence.comparing import is_near
from docs.evidence.measures import Comparison, gain, mean
from docs.evidence.plan import SEEDS
from docs.evidence.problems import moments
from docs.evidence.profiles import EVALUATIONS, PROFILES, settings
from docs.evidence.sections import FAMILIES, table
from docs.evidence.tasks import HELD_OUT, TASKS
from momo_wrap import sweep

LARGEST_RATIO = 4.0
REFERENCE = "AdamW"

Times = Mapping[str, Mapping[str, float]]


def first_step(task: str, values: Sequence[float], steps: int, tuned: float) -> float:
    """Return the first step after which a run is near a tuned one; inf if it never is.

    Args:
        task: The task.
        values: Score or loss, at evenly spaced moments of the run.
        steps: The number of steps of the run.
        tuned: Score or loss of the tuned one.
    """
    for step, value in zip(moments(steps, len(values)), values, strict=True):
        if is_near(task, gain(task, value, tuned)):
            return float(step)
    return math.inf


def ratios(times: Times) -> dict[str, dict[str, float]]:
    """Return the times over the least of all methods on the task; inf where none is finite.

    Args:
        times: By method and task; inf where the target is not reached.
    """
    least = {task: min(of[task] for of in times.values()) for task in next(iter(times.values()))}
    return {
        method: {t: time / least[t] if math.isfinite(time) else math.inf for t, time in of.items()}
        for method, of in times.items()
    }


def profile(found: Iterable[float], taus: Iterable[float]) -> list[float]:
    """Return ρ(τ): the share of ratios that are at most τ."""
    listed = list(found)
    return [mean(float(ratio <= tau) for ratio in listed) for tau in taus]


def score(found: Iterable[float]) -> float:
    """Return the mean of ρ over τ from 1 to 4; a ratio r adds to it from r on."""
    longest = LARGEST_RATIO - 1
    return mean(max(LARGEST_RATIO - ratio, 0.0) / longest for ratio in found)


@dataclass(frozen=True)
class Race:
    """The results of profiles.csv, of all methods that are complete.

    Attributes:
        lrs: The learning rate of each method.
        times: By method and task, the median over seeds of the steps to the target.
    """

    lrs: dict[str, float]
    times: dict[str, dict[str, float]]


def race(comparison: Comparison, path: Path) -> Race | None:
    """Return how fast the methods are, or None while there is not one that all runs are there of.

    Args:
        comparison: The results with a constant learning rate, which settings and targets are of.
        path: The results of profiles.py.
    """
    if not path.exists() or set(comparison.tasks) != set(TASKS):
        return None
    results = sweep.load(path)
    lrs = settings(comparison)
    needed = len(TASKS) * len(SEEDS)
    times = {}
    for method, lr in lrs.items():
        rows = results[(results["optimizer"] == method) & (results["lr"] == lr)]
        if len(rows) == needed:
            times[method] = _times(comparison, rows)
    return Race(lrs, times) if times else None


def _times(comparison: Comparison, rows: pd.DataFrame) -> dict[str, float]:
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for row in rows.itertuples():
        time = math.inf
        if row.status == "ok":
            values = [float(value) for value in row.evaluations.split()]
            tuned = comparison.cells[REFERENCE, row.task].best
            time = first_step(row.task, values, int(row.steps), tuned)
        found[row.task].append(time)
    return {task: float(np.median(times)) for task, times in found.items()}


def section(comparison: Comparison, path: Path = PROFILES) -> str:
    """Return the scores of all methods, and their steps to the target on each task.

    Args:
        comparison: The results with a constant learning rate.
        path: The results of profiles.py.
    """
    found = race(comparison, path)
    if found is None:
        return "There are no complete results yet."
    relative = ratios(found.times)
    methods = [method for method in FAMILIES if method in found.times]
    head = ["method", "lr", "reached", "score", "score, held out"]
    rows = [[m, f"{found.lrs[m]:g}", *_scores(relative[m])] for m in methods]
    steps = [[m, *(_steps(found.times[m][task]) for task in TASKS)] for m in methods]
    every = f"Steps to the target, judged {EVALUATIONS} times in each run:"
    return f"{table(head, rows)}\n\n{every}\n\n{table(['', *TASKS], steps)}"


def _scores(found: Mapping[str, float]) -> list[str]:
    reached = sum(math.isfinite(ratio) for ratio in found.values())
    held_out = [found[task] for task in HELD_OUT]
    return [f"{reached} of {len(found)}", f"{score(found.values()):.2f}", f"{score(held_out):.2f}"]


def _steps(time: float) -> str:
    return f"{time:.0f}" if math.isfinite(time) else "—"
