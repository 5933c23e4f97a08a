"""Over how many decades of the learning rate an optimizer trains well."""

from __future__ import annotations

import math
from collections.abc import Mapping

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

    For each task, optimizer and learning rate the value is the median over seeds, in which a run
    that failed counts as worse than any other. The best value of a task is the best that any of
    its optimizers has at any learning rate. A learning rate is tolerated if its value is within
    `margin` of that best, the margin itself included; what exceeds it by less than 1e-6 of the best
    or of the margin, whichever is larger, is taken for rounding. The tolerance of an optimizer is

        log10(highest / lowest)

    over the widest interval of its grid in which every learning rate is tolerated. Nothing is
    interpolated: the true width is larger by up to one spacing of the grid at either end, as long
    as the result between two tolerated points is as good as at both. So one tolerated learning
    rate alone gives 0, and none gives -inf. Of two intervals that are equally wide the lower
    counts.

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
    frames = []
    for task in _in_order(results, "task"):
        values = medians(results, task, column, higher_is_better)
        frames.append(_of_task(task, values, margin_of(margin, task), higher_is_better))
    return pd.concat(frames, ignore_index=True)


def medians(results: pd.DataFrame, task: str, column: str, higher_is_better: bool) -> pd.DataFrame:
    """Return the median over seeds, by learning rate (rows) and optimizer (columns).

    Args:
        results: What `run` or `load` returned.
        task: The task.
        column: What the median is of.
        higher_is_better: Whether a run that failed counts as -inf or as inf.

    Returns:
        The medians.

    Raises:
        ValueError: See `tolerance`.
    """
    by_seed = values_by_seed(results, task, column, higher_is_better)
    rates = list(by_seed.index)
    incomplete = by_seed.isna()
    if incomplete.to_numpy().any():
        missing = [
            (f"lr {lr:g}", *cell) for lr in rates for cell in by_seed.columns[incomplete.loc[lr]]
        ]
        raise ValueError(
            f"Of task {task!r}, {len(missing)} runs are missing that others have their like of, "
            f"the first: {', '.join(map(str, missing[0]))}. Compare optimizers at the same "
            "learning rates and seeds: run the rest, or select from the results."
        )
    return by_seed.T.groupby(level=0, sort=False).median().T


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
        ValueError: The column is missing, or has no value of the task.
    """
    _check_columns(results, column)
    rows = results[results["task"] == task]
    if rows.empty:
        raise ValueError(
            f"There are no results of task {task!r}, only of {_in_order(results, 'task')}."
        )
    succeeded = rows["status"] == "ok"
    if rows.loc[succeeded, column].isna().any():
        raise ValueError(
            f"The train function of task {task!r} returned no {column!r}; choose another column."
        )
    worst = -math.inf if higher_is_better else math.inf
    rows = rows.assign(value=rows[column].where(succeeded, worst).astype(float))
    seeds = sorted(rows["seed"].unique())
    table = rows.pivot(index="lr", columns=["optimizer", "seed"], values="value").sort_index()
    names = _in_order(rows, "optimizer")
    return table.reindex(columns=pd.MultiIndex.from_product([names, seeds]))


def near(
    values: pd.DataFrame, middle: pd.DataFrame, margin: float, higher_is_better: bool
) -> pd.DataFrame:
    """Tell which values are within the margin of the best median; see `tolerance`."""
    sign = 1.0 if higher_is_better else -1.0
    best = float((sign * middle).to_numpy().max())
    slack = _ROUNDING * max(abs(best), margin) if math.isfinite(best) else 0.0
    return np.isfinite(values) & (sign * values >= best - margin - slack)


def _of_task(
    task: str, values: pd.DataFrame, margin: float, higher_is_better: bool
) -> pd.DataFrame:
    sign = 1.0 if higher_is_better else -1.0
    gains = sign * values
    threshold = float(gains.to_numpy().max()) - margin
    tolerated = near(values, values, margin, higher_is_better)
    rows = []
    for name in values.columns:
        own = gains[name]
        lowest, highest = _widest(list(values.index), list(tolerated[name]))
        decades = math.log10(highest / lowest) if lowest == lowest else -math.inf
        interval = {"decades": decades, "lowest": lowest, "highest": highest}
        own_best = {
            "best": sign * own.max(),
            "best_lr": own.idxmax(),
            "threshold": sign * threshold,
        }
        rows.append({"task": task, "optimizer": name, **interval, **own_best})
    return pd.DataFrame(rows)


def _widest(rates: list[float], tolerated: list[bool]) -> tuple[float, float]:
    """Return the ends of the widest interval of consecutive rates that are tolerated."""
    widest: list[float] = []
    run: list[float] = []
    for lr, is_tolerated in zip(rates, tolerated, strict=True):
        run = [*run, lr] if is_tolerated else []
        if run and (not widest or run[-1] / run[0] > widest[-1] / widest[0]):
            widest = run
    return (widest[0], widest[-1]) if widest else (math.nan, math.nan)


def margin_of(margin: float | Mapping[str, float], task: str) -> float:
    """Return the margin of a task."""
    own = of_task("margin", margin, task)
    if not 0 <= own < math.inf:
        raise ValueError(f"The margin must be finite and not negative, got {own}.")
    return own


def of_task(name: str, value: float | Mapping[str, float], task: str) -> float:
    """Return a number that may be given for each task."""
    if isinstance(value, Mapping):
        if task not in value:
            raise ValueError(f"{name} has no entry for task {task!r}, only {list(value)}.")
        return float(value[task])
    return float(value)


def _check_columns(results: pd.DataFrame, column: str) -> None:
    needed = ["task", "optimizer", "lr", "seed", "status", column]
    if missing := [name for name in needed if name not in results.columns]:
        raise ValueError(
            f"The results have no columns {missing}, only {list(results.columns)}. Give what "
            "momo_wrap.sweep.run or load returned."
        )


def _in_order(results: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(results[column]))
