"""What to expect of an optimizer at a learning rate that is drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from momo_wrap.sweep.comparing import margin_of, medians, near, of_task, values_by_seed


def at_random_lr(
    results: pd.DataFrame,
    margin: float | Mapping[str, float],
    worst: float | Mapping[str, float],
    higher_is_better: bool = True,
    column: str = "score",
    decades: float = 3.0,
) -> pd.DataFrame:
    """Tell the expected result and the success rate at a random learning rate.

    The learning rate is log-uniform on a window of so many decades, [a, b] with
    log10(b / a) = `decades`. With x = log10(lr), the value v(x, s) of seed s is taken to change
    linearly in x between two learning rates of the grid, and is clipped at `worst`, which runs that
    failed count as. Then, for each seed,

        expected(s) = 1 / decades * integral of v(x, s) dx over the window
        success(s)  = 1 / decades * integral of 1[v(x, s) is within the margin of the best] dx

    where the indicator is interpolated likewise, and the best is that of `tolerance`: the best
    median over seeds that any optimizer has at any learning rate. What is returned is the mean over
    seeds, with the lowest and the highest of the seeds as a band. The window is the one with the
    best mean expected value, of those that begin at a learning rate of the grid: each optimizer is
    judged in the range of learning rates that suits it.

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
    for task in dict.fromkeys(results["task"]):
        middle = medians(results, task, column, higher_is_better)
        values = values_by_seed(results, task, column, higher_is_better)
        is_near = near(values, middle, margin_of(margin, task), higher_is_better)
        floor = of_task("worst", worst, task)
        clipped = values.clip(lower=floor) if higher_is_better else values.clip(upper=floor)
        for name in middle.columns:
            of_seeds = (clipped[name].to_numpy(), is_near[name].to_numpy(dtype=float))
            found = _best_window(values.index.to_numpy(), *of_seeds, decades, higher_is_better)
            rows.append({"task": task, "optimizer": name, **found})
    return pd.DataFrame(rows)


def _best_window(
    rates: Any, values: Any, is_near: Any, decades: float, higher_is_better: bool
) -> dict[str, float]:
    """Return the measures of the best window, of arrays with a row for each learning rate."""
    x = np.log10(rates)
    starts = [start for start in x if start + decades <= x[-1] + 1e-9]
    if not starts:
        raise ValueError(
            f"The grid spans {x[-1] - x[0]:.3g} decades, from {rates[0]:g} to {rates[-1]:g}; at "
            f"least {decades:g} are needed. Extend the grid, or give a smaller `decades`."
        )
    means = [_mean(x, values, start, decades) for start in starts]
    pick = np.argmax if higher_is_better else np.argmin
    chosen = int(pick([mean.mean() for mean in means]))
    start = starts[chosen]
    found = {"lowest": float(10**start), "highest": float(10 ** (start + decades))}
    measured = {"expected": means[chosen], "success": _mean(x, is_near, start, decades)}
    for name, of_seeds in measured.items():
        band = (of_seeds.mean(), of_seeds.min(), of_seeds.max())
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, band), strict=True))
    return found


def _mean(x: Any, values: Any, start: float, width: float) -> Any:
    """Return the means over a window of what is linear between the points, one of each column."""
    ends = np.array([start, start + width])
    inside = (x > ends[0] + 1e-9) & (x < ends[1] - 1e-9)
    points = np.concatenate([ends[:1], x[inside], ends[1:]])
    at = np.stack([np.interp(points, x, column) for column in values.T], axis=1)
    return (np.diff(points)[:, None] * (at[1:] + at[:-1]) / 2.0).sum(axis=0) / width
