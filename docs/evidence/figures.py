"""The figures of the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.evidence.measures import RULES, Comparison, judged_by
from docs.evidence.methods import BARE, TUNERS
from docs.evidence.tasks import HELD_OUT, SCORED, TASKS

# Okabe and Ito's colors; shapes and strokes distinguish the lines too.
STYLES: dict[str, dict[str, Any]] = {
    "bare": {"color": "black", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "MoMo": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "TrustedMoMo": {"color": "#D55E00", "linestyle": "-", "marker": "^"},
}
TUNER_COLOR = "#777777"
COLUMNS = 4


def draw(comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Draw all figures into a folder.

    Args:
        comparisons: The results by schedule; of one in which no task counts nothing is drawn.
        folder: The folder.
    """
    drawn = {name: c for name, c in comparisons.items() if c.tasks}
    for name, comparison in drawn.items():
        for base in ("AdamW", "SGD-M"):
            path = folder / f"{name}_{base.lower().replace('-', '_')}.png"
            over_learning_rates(comparison, base).savefig(path)
    if drawn:
        mean_tolerances(drawn).savefig(folder / "tolerance.png")


def over_learning_rates(comparison: Comparison, base: str) -> Figure:
    """Draw score or loss against the learning rate, a panel for each task.

    The lines are medians over seeds, with a band from the worst seed to the best. What failed, or
    is worse than a network that has hardly been trained, is drawn at the edge.

    Args:
        comparison: The results.
        base: The base, which is drawn bare and with each rule.
    """
    rows = math.ceil(len(comparison.tasks) / COLUMNS)
    size = (2.9 * COLUMNS, 0.8 + 2.5 * rows)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).flat)
    for axes, task in zip(panels, comparison.tasks, strict=False):
        _panel(axes, comparison, base, task)
    for axes in panels[len(comparison.tasks) :]:
        axes.set_visible(False)
    for axes in panels[max(len(comparison.tasks) - COLUMNS, 0) : len(comparison.tasks)]:
        axes.tick_params(labelbottom=True)
    entries = [axes.get_legend_handles_labels() for axes in panels[: len(comparison.tasks)]]
    figure.legend(
        *max(entries, key=lambda entry: len(entry[1])),
        loc="outside upper center",
        ncols=5,
        fontsize=12,
        handlelength=3,
    )
    figure.supxlabel("learning rate (wrapped: the cap)")
    return figure


def _panel(axes: Axes, comparison: Comparison, base: str, task: str) -> None:
    limits = _limits(comparison, task)
    for kind, style in STYLES.items():
        method = base if kind == "bare" else f"{base} + {kind}"
        if (method, task) in comparison.cells:
            _draw_method(axes, comparison, (method, task), limits, style)
    ends = comparison.near_best(task)
    axes.axhspan(*ends, color="0.8", zorder=0, label="near the best of all methods")
    axes.set(xscale="log", ylim=limits, ylabel=judged_by(task))
    if task not in SCORED:
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = np.geomspace(*limits, 4)
        axes.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.set_title(task + " (held out)" * (task in HELD_OUT), fontsize=10)
    axes.set_xticks([1e-4, 1e-2, 1, 1e2])
    axes.grid(alpha=0.3)


def _draw_method(
    axes: Axes,
    comparison: Comparison,
    cell: tuple[str, str],
    limits: tuple[float, float],
    style: Mapping[str, Any],
) -> None:
    """Draw the line of a method, its band, and a cross where its median is a failure."""
    method, task = cell
    medians = comparison.medians[task][method]
    seeds = comparison.by_seed[task][method].clip(*limits)
    rates, color = medians.index.to_numpy(), style["color"]
    band = seeds.min(axis=1), seeds.max(axis=1)
    axes.fill_between(rates, *band, color=color, alpha=0.15, lw=0)
    look = {"markersize": 5, "linewidth": 1.6, "clip_on": False, **style}
    axes.plot(rates, medians.clip(*limits), label=method, **look)
    failed = rates[~np.isfinite(medians)]
    if len(failed):
        worst = limits[0] if task in SCORED else limits[1]
        axes.plot(failed, [worst] * len(failed), "x", color=color, ms=9, mew=2, clip_on=False)


def _limits(comparison: Comparison, task: str) -> tuple[float, float]:
    """Return the range from hardly trained, at the lowest learning rate, to the best."""
    medians = comparison.medians[task]
    untrained = medians.iloc[0][np.isfinite(medians.iloc[0])]
    if task in SCORED:
        low, high = float(untrained.min()), float(medians.to_numpy().max())
        room = 0.05 * (high - low)
        return low - room, high + room
    return float(medians.to_numpy().min()) / 1.05, float(untrained.max()) * 1.05


def mean_tolerances(comparisons: Mapping[str, Comparison]) -> Figure:
    """Draw the mean tolerance of each method: bases with their wrapped forms, then tuners.

    A mean that is not over all tasks has their number on top.

    Args:
        comparisons: The results by schedule.
    """
    names = [*BARE, *TUNERS]
    places = {name: -i - (name in TUNERS) * 0.8 for i, name in enumerate(names)}
    size = (1.9 + 4.2 * len(comparisons), 4.8)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = list(
        figure.subplots(1, len(comparisons), sharex=True, sharey=True, squeeze=False).flat
    )
    for axes, (schedule, comparison) in zip(panels, comparisons.items(), strict=True):
        _dots(axes, comparison, places)
        axes.set_title(f"schedule: {schedule}")
        axes.set_yticks(list(places.values()), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.4)
        _tell_tasks(axes, comparison, places)
        axes.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=11)
    figure.supxlabel("decades of learning rate that are near the best, mean over tasks")
    return figure


def _tell_tasks(axes: Axes, comparison: Comparison, places: Mapping[str, float]) -> None:
    """Say which means are over few tasks, while some runs are missing."""
    for base, place in places.items():
        forms = [base, *(f"{base} + {rule}" for rule in RULES)]
        for method in forms:
            tasks = len(comparison.common([method]))
            if 0 < tasks < len(TASKS):
                width = comparison.mean_width(method, comparison.common([method]))
                axes.annotate(
                    str(tasks), (width, place), (0, 7), textcoords="offset points", ha="center"
                )


def _dots(axes: Axes, comparison: Comparison, places: Mapping[str, float]) -> None:
    means = {m: comparison.mean_width(m, comparison.common([m])) for m in comparison.methods()}
    for base in BARE:
        forms = [means[m] for m in (base, *(f"{base} + {rule}" for rule in RULES)) if m in means]
        axes.hlines(places[base], min(forms), max(forms), color="0.8", lw=3, zorder=0)
    for kind, style in STYLES.items():
        chosen = {b: means.get(b if kind == "bare" else f"{b} + {kind}") for b in BARE}
        points = [(width, places[b]) for b, width in chosen.items() if width is not None]
        if points:
            look = {**style, "linestyle": "none", "markersize": 9, "label": kind}
            axes.plot(*zip(*points, strict=True), **look, clip_on=False)
    tuners = [(means[t], places[t]) for t in TUNERS if t in means]
    if tuners:
        look = {"color": TUNER_COLOR, "markersize": 9, "label": "tunes itself"}
        axes.plot(*zip(*tuners, strict=True), "D", **look, clip_on=False)
