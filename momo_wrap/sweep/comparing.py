"""How much the learning rate matters to an optimizer: its tolerance, and what to expect of chance.

The formulas are in docs/sweep.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

_ROUNDING = 1e-6  # relative: scores are often computed in float32


def tolerance(
    results: pd.DataFrame,
    margin: float | Mapping[str, float],
    higher_is_better: bool = True,
    column: str = "score",
) -> pd.DataFrame:
    """Tell over how many decades of the learning rate each optimizer stays near the best result.

    A learning rate is tolerated if the median over seeds, in which a run that failed counts as the
    worst, is within `margin` of the best that any optimizer of the task has at any learning rate,
    the margin itself included; what exceeds it by less than 1e-6 of the best or of the margin,
    whichever is larger, is taken for rounding. The tolerance is log10(highest / lowest) over the
    widest interval of the grid in which every learning rate is tolerated: 0 for one alone, -inf for
    none. Nothing is interpolated. Of two intervals that are equally wide the lower counts.

    Args:
        results: What `run` or `load` returned.
        margin: How much worse than the best is near enough, in units of the column; or one for
            each task.
        higher_is_better: Whether the column is an accuracy or the like; False: a loss.
        column: What is compared.

    Returns:
        A row per task and optimizer, in the order of the results, with columns `task`,
        `optimizer`, `decades`, `lowest` and `highest` (the ends of the interval, NaN where there
        is none), `best` (its own best value), `best_lr` and `threshold` (that a tolerated value
        reaches).

    Raises:
        ValueError: A margin is negative or missing; the column is missing or empty; the optimizers
            of a task were not run at the same learning rates, with the same seeds at each.
    """
    sign = 1.0 if higher_is_better else -1.0
    rows = []
    for task in results["task"].unique():
        values = medians(results, task, column, higher_is_better)
        gains, tolerated = sign * values, near(values, values, task, margin, higher_is_better)
        threshold = sign * (float(gains.to_numpy().max()) - of_task("margin", margin, task))
        for name in values.columns:
            lowest, highest = _widest(tolerated[name])
            decades = math.log10(highest / lowest) if lowest == lowest else -math.inf
            row = {"task": task, "optimizer": name, "decades": decades, "lowest": lowest}
            row |= {"highest": highest, "best": sign * gains[name].max()}
            rows.append({**row, "best_lr": gains[name].idxmax(), "threshold": threshold})
    return pd.DataFrame(rows)


def at_random_lr(
    results: pd.DataFrame,
    margin: float | Mapping[str, float],
    worst: float | Mapping[str, float],
    higher_is_better: bool = True,
    column: str = "score",
    decades: float = 3.0,
) -> pd.DataFrame:
    """Tell the expected result and the success rate at a random learning rate.

    The learning rate is log-uniform on a window, of those that begin at a learning rate of the grid
    the one with the best expected result. The results of each seed, clipped at `worst`, are linear
    in log10(lr) between two learning rates; so is whether they are within the margin of the best,
    see `tolerance`. What is returned is the mean over seeds, and the lowest and highest of them.

    Args:
        results: What `run` or `load` returned.
        margin: How much worse than the best is near enough, in units of the column; or one for
            each task.
        worst: What failed runs, and those that are still worse, count as: the accuracy of guessing,
            or the loss of the untrained model; or one for each task.
        higher_is_better: Whether the column is an accuracy or the like; False: a loss.
        column: What is compared.
        decades: The width of the window.

    Returns:
        A row per task and optimizer with columns `task`, `optimizer`, `lowest` and `highest` (the
        ends of the window), `expected`, `expected_low`, `expected_high`, `success`, `success_low`
        and `success_high`.

    Raises:
        ValueError: As `tolerance`; or the grid is narrower than the window.

    Example:
        >>> at_random_lr(results, margin=0.02, worst=0.1)  # of ten classes
    """
    rows = []
    for task in results["task"].unique():
        middle = medians(results, task, column, higher_is_better)
        values = values_by_seed(results, task, column, higher_is_better)
        is_near = near(values, middle, task, margin, higher_is_better)
        floor = of_task("worst", worst, task)
        clipped = values.clip(lower=floor) if higher_is_better else values.clip(upper=floor)
        for name in middle.columns:
            x, of_seeds = np.log10(values.index.to_numpy()), clipped[name].to_numpy()
            start = _best_window(x, of_seeds, decades, higher_is_better)
            row = {"task": task, "optimizer": name, "lowest": 10**start}
            row["highest"] = 10 ** (start + decades)
            for kind, part in (("expected", of_seeds), ("success", is_near[name].to_numpy(float))):
                mean = _mean(x, part, start, decades)
                row |= {kind: mean.mean(), f"{kind}_low": mean.min(), f"{kind}_high": mean.max()}
            rows.append(row)
    return pd.DataFrame(rows)


def medians(results: pd.DataFrame, task: str, column: str, higher_is_better: bool) -> pd.DataFrame:
    """Return the medians over seeds of `values_by_seed`, by learning rate and optimizer.

    Args:
        results: What `run` or `load` returned.
        task: The task.
        column: Which values.
        higher_is_better: Whether a run that failed counts as -inf or as inf.

    Raises:
        ValueError: As `values_by_seed`; or runs are missing that others have their like of.
    """
    values = values_by_seed(results, task, column, higher_is_better)
    missing = values.isna().stack([0, 1], future_stack=True)
    if missing.any():
        lr, name, seed = missing.idxmax()
        raise ValueError(
            f"Of task {task!r}, {missing.sum()} runs are missing that others have their like of, "
            f"the first: lr {lr:g}, {name}, {seed}. Compare optimizers at the same learning rates "
            "and seeds: run the rest, or select from the results."
        )
    return values.T.groupby(level=0, sort=False).median().T


def values_by_seed(
    results: pd.DataFrame, task: str, column: str, higher_is_better: bool
) -> pd.DataFrame:
    """Return the values of a task, by learning rate (rows) and optimizer and seed (columns).

    Args:
        results: What `run` or `load` returned.
        task: The task.
        column: Which values.
        higher_is_better: Whether a run that failed counts as -inf or as inf.

    Returns:
        The values, NaN where there is no such run.

    Raises:
        ValueError: There is no such task, or no such value of each of its runs.
    """
    rows = results[results["task"] == task]
    succeeded = rows["status"] == "ok"
    if rows.empty or column not in rows or rows.loc[succeeded, column].isna().any():
        raise ValueError(
            f"The results lack {column!r} of task {task!r}; they have the columns "
            f"{list(results.columns)} and the tasks {list(results['task'].unique())}."
        )
    worst = -math.inf if higher_is_better else math.inf
    rows = rows.assign(value=rows[column].where(succeeded, worst).astype(float))
    every = [rows["optimizer"].unique(), sorted(rows["seed"].unique())]
    values = rows.pivot(index="lr", columns=["optimizer", "seed"], values="value").sort_index()
    return values.reindex(columns=pd.MultiIndex.from_product(every))


def near(
    values: pd.DataFrame,
    middle: pd.DataFrame,
    task: str,
    margin: float | Mapping[str, float],
    higher_is_better: bool,
) -> pd.DataFrame:
    """Tell which values are within the margin of the best median, see `tolerance`."""
    own = of_task("margin", margin, task)
    if not 0 <= own < math.inf:
        raise ValueError(f"The margin must be finite and not negative, got {own}.")
    sign = 1.0 if higher_is_better else -1.0
    best = float((sign * middle).to_numpy().max())
    slack = _ROUNDING * max(abs(best), own) if math.isfinite(best) else 0.0
    return np.isfinite(values) & (sign * values >= best - own - slack)


def of_task(name: str, value: float | Mapping[str, float], task: str) -> float:
    """Return a number that may be given for each task."""
    if isinstance(value, Mapping):
        if task not in value:
            raise ValueError(f"{name} has no entry for task {task!r}, only {list(value)}.")
        return float(value[task])
    return float(value)


def _widest(tolerated: pd.Series) -> tuple[float, float]:
    """Return the ends of the widest interval of consecutive learning rates that are tolerated."""
    rates = tolerated.index[tolerated].to_series()
    ends = rates.groupby((~tolerated).cumsum()[tolerated]).agg(["min", "max"])
    if ends.empty:
        return math.nan, math.nan
    lowest, highest = ends.loc[(ends["max"] / ends["min"]).idxmax()]
    return float(lowest), float(highest)


def _best_window(x: Any, values: Any, width: float, higher_is_better: bool) -> float:
    """Return where the window with the best mean begins, of values with a row for each x."""
    starts = [start for start in x if start + width <= x[-1] + 1e-9]
    if not starts:
        raise ValueError(
            f"The grid spans {x[-1] - x[0]:.3g} decades, from {10 ** x[0]:g} to {10 ** x[-1]:g}; "
            f"at least {width:g} are needed. Extend the grid, or give a smaller `decades`."
        )
    means = [_mean(x, values, start, width).mean() for start in starts]
    return float(starts[int(np.argmax(means) if higher_is_better else np.argmin(means))])


def _mean(x: Any, values: Any, start: float, width: float) -> Any:
    """Return the mean of each column over a window, linear between the points."""
    inside = x[(x > start + 1e-9) & (x < start + width - 1e-9)]
    points = np.array([start, *inside, start + width])
    at = np.stack([np.interp(points, x, column) for column in values.T], axis=1)
    return (np.diff(points)[:, None] * (at[1:] + at[:-1]) / 2.0).sum(axis=0) / width
