"""The performance profiles as a figure: a panel for each base, and one for the tuners."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.evidence.figures import STYLES
from docs.evidence.methods import BARE, TUNERS
from docs.evidence.steps_to_target import LARGEST_RATIO, Race, profile, ratios

# Okabe and Ito's colors, and strokes that distinguish the lines without them.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STROKES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]
COLUMNS = 4


def draw(race: Race) -> Figure:
    """Draw ρ over τ.

    Args:
        race: The times of all methods.
    """
    found = ratios(race.times)
    taus = np.linspace(1, LARGEST_RATIO, 601)
    lines = {method: profile(of.values(), taus) for method, of in found.items()}
    figure = Figure(figsize=(12.5, 6.4), dpi=100, layout="constrained")
    panels = list(figure.subplots(2, COLUMNS, sharex=True, sharey=True).flat)
    for axes, base in zip(panels, BARE, strict=False):
        for kind, style in STYLES.items():
            method = base if kind == "bare" else f"{base} + {kind}"
            look = {**style, "marker": None, "lw": 2.2}
            _line(axes, taus, lines.get(method), label=kind, **look)
        axes.set_title(base)
    tuners = panels[len(BARE)]
    looks = zip(COLORS, STROKES, strict=True)
    for tuner, (color, stroke) in zip(TUNERS, looks, strict=True):
        _line(tuners, taus, lines.get(tuner), label=tuner, color=color, linestyle=stroke, lw=2)
    tuners.set_title("tune themselves")
    _finish(figure, panels)
    return figure


def _line(axes: Axes, taus: Any, shares: list[float] | None, **look: Any) -> None:
    if shares is not None:
        look.pop("markerfacecolor", None)
        axes.plot(taus, shares, drawstyle="steps-post", **look)


def _finish(figure: Figure, panels: list[Axes]) -> None:
    """Name the axes, and put both legends where the last panel would be."""
    *drawn, last = panels
    for axes in drawn:
        axes.set(xlim=(1, LARGEST_RATIO), ylim=(-0.02, 1.02))
        axes.set_xticks([1, 2, 3, 4])
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    last.set_axis_off()
    legends: list[tuple[str, Axes, Literal["upper left", "lower left"]]] = [
        ("a base", drawn[0], "upper left"),
        ("tune themselves", drawn[-1], "lower left"),
    ]
    for title, axes, where in legends:
        if before := last.get_legend():
            last.add_artist(before)  # a second legend would replace it
        handles, labels = axes.get_legend_handles_labels()
        last.legend(
            handles,
            labels,
            title=title,
            loc=where,
            handlelength=3.5,
            frameon=False,
            alignment="left",
        )
    figure.supxlabel("τ: steps to the target, over the fewest that any method needs")
    figure.supylabel("share of the ten tasks, ρ(τ)")
