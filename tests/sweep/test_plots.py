"""Figures show the results, and distinguish the lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from momo_wrap.sweep import plot_losses, plot_scores, plot_step_sizes

RATES = [1e-2, 1e-1, 1.0]


def results(kinds: dict[str, tuple[str, bool]], task: str = "task") -> pd.DataFrame:
    """Two seeds of each optimizer; bare ones diverge at the last learning rate."""
    rows = []
    for number, (optimizer, (base, wrapped)) in enumerate(kinds.items()):
        for lr in RATES:
            for seed in (0, 1):
                failed = lr == RATES[-1] and not wrapped
                row = {"task": task, "optimizer": optimizer, "lr": lr, "seed": seed}
                score = 0.5 + 0.1 * number + 0.02 * seed
                values = {"score": score, "loss": 1 - score, "base": base, "wrapped": wrapped}
                rows.append({**row, **values, "status": "diverged" if failed else "ok"})
    return pd.DataFrame(rows)


PAIRS = {
    "SGD": ("SGD", False),
    "SGD + MoMo": ("SGD", True),
    "AdamW": ("AdamW", False),
    "AdamW + MoMo": ("AdamW", True),
}


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def shows_something(path: Path) -> bool:
    return path.stat().st_size > 10_000 and float(imread(path)[..., :3].std()) > 0.03


@pytest.mark.parametrize("plot", [plot_scores, plot_losses])
def test_lines(tmp_path: Path, plot: object) -> None:
    path = tmp_path / "figure.png"
    figure = plot(results(PAIRS), path, margin=0.05)  # type: ignore[operator]
    assert shows_something(path)
    axes = axes_of(figure)
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == list(PAIRS)
    assert [lines[name].get_linestyle() for name in PAIRS] == ["--", "-", "--", "-"]
    assert len({line.get_marker() for line in axes.lines}) == 4
    assert lines["SGD"].get_color() == lines["SGD + MoMo"].get_color()
    assert lines["SGD"].get_color() != lines["AdamW"].get_color()
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    edge = low if plot is plot_scores else high
    drawn = np.asarray(lines["SGD"].get_ydata(), dtype=float)
    middle = 0.51 if plot is plot_scores else 0.49
    assert drawn == pytest.approx([middle, middle, edge])
    assert len(axes.collections) == 4  # the bands
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_several_of_a_kind_have_colors_of_their_own(tmp_path: Path) -> None:
    kinds = {"MoMo": ("AdamW", True), "MoMoStar": ("AdamW", True), "bare": ("AdamW", False)}
    figure = plot_scores(results(kinds), tmp_path / "figure.png")
    assert len({str(line.get_color()) for line in axes_of(figure).lines}) == 3


def test_label(tmp_path: Path) -> None:
    figure = plot_scores(results(PAIRS), tmp_path / "f.png", label="accuracy")
    assert axes_of(figure).get_ylabel() == "accuracy"


def test_loss_that_exploded_does_not_flatten_the_rest(tmp_path: Path) -> None:
    table = results(PAIRS)
    table.loc[0, "loss"] = 1e30
    figure = plot_losses(table, tmp_path / "f.png")
    assert axes_of(figure).get_ylim()[1] < 100


def test_task_must_be_named_where_there_are_two(tmp_path: Path) -> None:
    both = pd.concat([results(PAIRS, "a"), results(PAIRS, "b")])
    with pytest.raises(ValueError, match=r"of the tasks \['a', 'b'\]; name one"):
        plot_scores(both, tmp_path / "f.png")
    assert axes_of(plot_scores(both, tmp_path / "f.png", "b")).get_title() == "b"
    with pytest.raises(ValueError, match="lack 'score' of task 'c'; they have"):
        plot_scores(both, tmp_path / "f.png", "c")


def test_all_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="All runs failed"):
        plot_scores(results(PAIRS).assign(status="error"), tmp_path / "f.png")


def test_step_sizes(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    steps = list(range(50))
    curve = {"step": steps, "effective_lr": [0.0] + [0.01] * 49, "lr": [0.1] * 50}
    groups = {"step": steps, "effective_lr/pg1": [0.02] * 50, "lr/pg1": [1.0] * 50}
    figure = plot_step_sizes({"one": curve, "two": pd.DataFrame(groups)}, path)
    assert shows_something(path)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    sizes, cap = figure.axes[0].lines
    low, high = figure.axes[0].get_ylim()
    assert np.asarray(sizes.get_ydata(), dtype=float)[0] == low
    assert np.asarray(cap.get_ydata(), dtype=float)[0] == 0.1
    assert high > 1.0


def test_step_sizes_that_lack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no curves"):
        plot_step_sizes({}, tmp_path / "f.png")
    with pytest.raises(ValueError, match=r"curve 'a' must have the columns .*got \['step'\]"):
        plot_step_sizes({"a": {"step": [1]}}, tmp_path / "f.png")
    with pytest.raises(ValueError, match="No step of the curves has a positive size"):
        plot_step_sizes({"a": {"step": [1], "effective_lr": [0], "lr": [0]}}, tmp_path / "f.png")
