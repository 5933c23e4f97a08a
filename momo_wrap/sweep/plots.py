"""Figures of a sweep: results against the learning rate, step sizes over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from momo_wrap.sweep.comparing import medians, values_by_seed

# Okabe and Ito's palette for the color-blind, without its yellow, which is faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*Xhd"
_PANELS_PER_ROW = 4


def plot_scores(
    results: pd.DataFrame,
    path: str | PathLike[str],
    task: str | None = None,
    *,
    higher_is_better: bool = True,
    margin: float | None = None,
    label: str = "score",
) -> Figure:
    """Draw the score against the learning rate, a line for each optimizer.

    The line is the median over seeds and the band reaches from the worst seed to the best.
    Wrapped optimizers have solid lines and filled markers, bare ones dashed lines and hollow
    markers; a pair of the same kind has one color. A run that failed counts as the worst: it is
    drawn at the edge.

    Args:
        results: What `run` or `load` returned.
        path: The figure; the ending decides the format.
        task: The task; it may be left out where there is one only.
        higher_is_better: Whether a high score is a good one.
        margin: Also draw the band of scores within this of the best, see `tolerance`.
        label: What the score is called on the axis.

    Returns:
        The figure, which is saved already.

    Raises:
        ValueError: There are several tasks and none is named; runs or scores are missing.
    """
    figure = draw(results, task, "score", higher_is_better, margin, label)
    figure.savefig(path)
    return figure


def plot_losses(
    results: pd.DataFrame,
    path: str | PathLike[str],
    task: str | None = None,
    *,
    margin: float | None = None,
    label: str = "loss",
) -> Figure:
    """Draw the loss against the learning rate, on a logarithmic axis; see `plot_scores`.

    Args:
        results: What `run` or `load` returned.
        path: The figure; the ending decides the format.
        task: The task; it may be left out where there is one only.
        margin: Also draw the band of losses within this of the best.
        label: What the loss is called on the axis.

    Returns:
        The figure, which is saved already. What exceeds 100 times the median loss is at the edge.

    Raises:
        ValueError: There are several tasks and none is named; runs or losses are missing.
    """
    figure = draw(results, task, "loss", False, margin, label)
    figure.savefig(path)
    return figure


def plot_step_sizes(curves: Mapping[str, Any], path: str | PathLike[str]) -> Figure:
    """Draw the effective step size over training against its cap, a panel for each curve.

    Args:
        curves: By title: what `Recorder.curve()` or `load_curves` returned, with the columns
            `step`, `effective_lr` and `lr`. Of several parameter groups the first is drawn.
        path: The figure; the ending decides the format.

    Returns:
        The figure, which is saved already. Steps of size 0 are at the lower edge.

    Raises:
        ValueError: There is no curve, or columns are missing.
    """
    figure = draw_step_sizes(curves)
    figure.savefig(path)
    return figure


def draw(
    results: pd.DataFrame,
    task: str | None,
    column: str,
    higher_is_better: bool,
    margin: float | None = None,
    label: str | None = None,
    size: tuple[float, float] = (7.5, 5.0),
) -> Figure:
    """Draw medians and bands of a column of one task, see `plot_scores`."""
    if task is None:
        task, *others = results["task"].unique()
        if others:
            raise ValueError(f"The results are of the tasks {[task, *others]}; name one: task=...")
    middle = medians(results, task, column, higher_is_better)
    by_seed = values_by_seed(results, task, column, higher_is_better)
    low, high = _limits(by_seed.to_numpy(), column == "loss")
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    rates = middle.index.to_numpy()
    for name, style in _styles(results[results["task"] == task], list(middle.columns)).items():
        seeds, color = by_seed[name].clip(low, high), style["color"]
        ends = (seeds.min(axis=1), seeds.max(axis=1))
        axes.fill_between(rates, *ends, color=color, alpha=0.15, lw=0)
        axes.plot(rates, middle[name].clip(low, high), label=name, clip_on=False, **style)
    if margin is not None:
        values = middle.to_numpy()
        best = values.max() if higher_is_better else values.min()
        edges = sorted([best, best - margin if higher_is_better else best + margin])
        axes.axhspan(*edges, color="0.85", zorder=0, label=f"within {margin:g} of the best")
    axes.set(xscale="log", xlabel="learning rate (wrapped: upper bound)")
    axes.set(yscale="log" if column == "loss" and low > 0 else "linear", ylim=(low, high))
    axes.set(ylabel=column if label is None else label, title=task)
    axes.grid(alpha=0.3)
    # Below the axes, where the legend covers nothing, in as many columns as have room.
    handles, labels = axes.get_legend_handles_labels()
    room = int(14 * size[0]) // (max(map(len, labels)) + 12)  # characters in the width
    columns = max(1, min(math.ceil(len(labels) / 2), room))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def draw_step_sizes(curves: Mapping[str, Any]) -> Figure:
    """Draw curves, see `plot_step_sizes`."""
    if not curves:
        raise ValueError("There are no curves; a train function returns one under 'curve'.")
    frames = {title: _first_group(title, curve) for title, curve in curves.items()}
    sizes = pd.concat(frames.values())[["effective_lr", "lr"]].stack()
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if sizes.empty:
        raise ValueError("No step of the curves has a positive size.")
    low, high = sizes.min() / 1.5, sizes.max() * 1.5
    columns = min(_PANELS_PER_ROW, len(frames))
    rows = math.ceil(len(frames) / columns)
    figure = Figure(figsize=(1.2 + 3 * columns, 0.9 + 2.4 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (title, frame) in zip(grid.flat, frames.items(), strict=False):
        sizes = frame["effective_lr"].clip(lower=low)
        axes.plot(frame["step"], sizes, ".", color=_COLORS[0], markersize=3, label="effective lr")
        axes.plot(frame["step"], frame["lr"], "--", color=_COLORS[1], label="cap (lr)")
        axes.set(title=title, yscale="log", ylim=(low, high))
        axes.title.set_fontsize("medium")
    for axes in grid.flat[len(frames) :]:
        axes.set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("step size")
    entries = grid.flat[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=2, markerscale=3)
    return figure


def _first_group(title: str, curve: Any) -> pd.DataFrame:
    """Return the steps, effective step sizes and caps of a curve, of the first parameter group."""
    frame, names = pd.DataFrame(curve), ("step", "effective_lr", "lr")
    found = [frame.filter(regex=f"^{name}(/|$)") for name in names]
    if any(part.empty for part in found):
        raise ValueError(
            f"The curve {title!r} must have the columns {names}, got {list(frame.columns)}. Return "
            "Recorder.curve() from the train function."
        )
    return pd.concat([part.iloc[:, 0] for part in found], axis=1, keys=names)


def _limits(values: Any, is_loss: bool) -> tuple[float, float]:
    """Return the range of the finite values, with some room; a loss may have exploded."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError("All runs failed, see the messages.")
    low, high = finite.min(), finite.max()
    if is_loss:
        high = min(high, 100 * float(np.median(finite)))
    if is_loss and low > 0:
        return low / 1.3, high * 1.3
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _styles(rows: pd.DataFrame, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return how the line of each optimizer is drawn: no two alike, also without colors."""
    # A run that failed early may not know its kind.
    known = rows[rows["base"] != ""].drop_duplicates("optimizer").set_index("optimizer")
    bases = known["base"].to_dict()
    kinds = [(bases.get(name, name), bool(known["wrapped"].get(name))) for name in names]
    hues = [base for base, _ in kinds] if len({*kinds}) == len(names) else names
    styles: dict[str, dict[str, Any]] = {}
    for number, (name, (_, wrapped), hue) in enumerate(zip(names, kinds, hues, strict=True)):
        color = _COLORS[list(dict.fromkeys(hues)).index(hue) % len(_COLORS)]
        marker = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 8 if wrapped else 6}
        fill, line = ("white", color)[wrapped], ("--", "-")[wrapped]
        # Bare lines are thin and on top, so that both show where they coincide.
        width = {"linewidth": 2 if wrapped else 1.5, "zorder": 3 if wrapped else 4}
        styles[name] = {"color": color, "linestyle": line, "markerfacecolor": fill}
        styles[name] |= marker | width
    return styles
