"""A report of a sweep: one HTML file, to look at and to pass on."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from momo_wrap.sweep.comparing import at_random_lr, medians, near, of_task, tolerance
from momo_wrap.sweep.plots import draw, draw_step_sizes
from momo_wrap.sweep.results_file import VERSIONS

_SIZE = (5.4, 4.3)  # inches: wide enough beside another figure, and legible on a telephone
_FIGURES: Any = {"font.size": 12, "svg.fonttype": "none", "svg.hashsalt": "momo_wrap"}
_POINTS = 300  # of a curve; more can't be told apart
_STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; font-size: 1.3rem; } h3 { font-size: 1.05rem; }
svg { max-width: 100%; height: auto; } div { overflow-x: auto; } div svg { min-width: 44rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
td:first-child { position: sticky; left: 0; background: #fff; text-align: left; }
mark { padding: 0.2rem; background: #d9eaf7; font-weight: 600; }
pre { overflow-x: auto; background: #f6f6f6; padding: 0.7rem; font-size: 0.8rem; }
"""


def report(
    results: pd.DataFrame,
    path: str | PathLike[str],
    margin: float | Mapping[str, float],
    worst: float | Mapping[str, float],
    higher_is_better: bool = True,
    column: str = "score",
    *,
    decades: float = 3.0,
    curves: Mapping[str, Any] | None = None,
) -> None:
    """Write what a sweep has found into one HTML file that needs no server and no network.

    For each task: the tolerance of each optimizer and what to expect at a random learning rate; the
    results against the learning rate, as a figure and as a table of medians over seeds, in which
    those within the margin are marked. Then the effective learning rates over training, and the
    runs that failed, with their tracebacks.

    Args:
        results: What `run` or `load` returned.
        path: The file.
        margin: How much worse than the best is near enough, see `tolerance`.
        worst: What failed runs count as, see `at_random_lr`.
        higher_is_better: Whether the column is an accuracy or the like; False: a loss.
        column: What is compared: "score" or "loss", or another.
        decades: The width of the window of random learning rates.
        curves: What `load_curves` returned; each is drawn.

    Raises:
        ValueError: As `tolerance` and `at_random_lr`.
    """
    how = (higher_is_better, column)
    measured = tolerance(results, margin, *how).merge(
        at_random_lr(results, margin, worst, *how, decades),
        on=["task", "optimizer"],
        suffixes=("", "_at_random"),
    )
    body = [_about(results)]
    with mpl.rc_context(_FIGURES):
        for task, own in measured.groupby("task", sort=False):
            body += _of_one_task(results, own, str(task), margin, *how, decades)
        if curves:
            frames = {title: pd.DataFrame(curve) for title, curve in curves.items()}
            thin = {title: f.iloc[:: 1 + len(f) // _POINTS] for title, f in frames.items()}
            body.append("<h2>Effective learning rate over training</h2>")
            body.append(f"<div>{_svg(draw_step_sizes(thin))}</div>")
    body += _failures(results)
    Path(path).write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Learning rate sweep</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>Learning rate sweep</h1>{''.join(body)}</body></html>\n",
        encoding="utf-8",
    )


def _of_one_task(
    results: pd.DataFrame,
    measured: pd.DataFrame,
    task: str,
    margin: float | Mapping[str, float],
    higher_is_better: bool,
    column: str,
    decades: float,
) -> list[str]:
    """Return the parts of the page about one task."""
    near_best = of_task("margin", margin, task)
    parts = [
        f"<h2>{escape(task)}</h2>{_summary(measured, column)}",
        f"<p>Tolerated: the median over seeds is within {near_best:g} of the best median. "
        f"At random: log-uniform on the {decades:g} decades that are best for the "
        "optimizer, with the range over seeds; success: within the margin.</p>",
        _svg(draw(results, task, column, higher_is_better, near_best, size=_SIZE)),
    ]
    if column != "loss" and results.loc[results["task"] == task, "loss"].notna().any():
        parts.append(_svg(draw(results, task, "loss", False, size=_SIZE)))
    values = medians(results, task, column, higher_is_better)
    parts.append(f"<h3>Median {escape(column)} over seeds; marked: within the margin</h3>")
    return [*parts, _grid(values, near(values, values, task, margin, higher_is_better))]


def _failures(results: pd.DataFrame) -> list[str]:
    """Return the part of the page about runs that failed, with their tracebacks."""
    failed = results[results["status"] == "error"].to_dict("records")
    parts = ["<h2>Runs that failed</h2>"] * bool(failed)
    for row in failed:
        about = escape("{task}, {optimizer}, lr {lr:g}, seed {seed}: {message}".format(**row))
        trace = escape(row.get("traceback") or row["message"])
        parts.append(f"<details><summary>{about}</summary><pre>{trace}</pre></details>")
    return parts


def _about(results: pd.DataFrame) -> str:
    """Describe the sweep."""
    rates, seeds = results["lr"], results["seed"].nunique()
    by = ", ".join(f"{name} {' and '.join(results[name].unique())}" for name in VERSIONS)
    return (
        f"<p>{len(results):,} runs: {rates.nunique()} learning rates from {rates.min():g} to "
        f"{rates.max():g}, seeds: {seeds}; {(results['status'] != 'ok').sum():,} diverged or "
        f"failed. {escape(by)}.</p>"
    )


def _summary(measured: pd.DataFrame, column: str) -> str:
    """Return the table of the measures of each optimizer."""
    rows = [
        {
            "optimizer": row.optimizer,
            f"best {column}": f"{row.best:.4g}",
            "at lr": f"{row.best_lr:.4g}",
            "decades tolerated": _number(row.decades, ".1f"),
            "from lr": _number(row.lowest, ".4g"),
            "to lr": _number(row.highest, ".4g"),
            f"expected {column} at a random lr": f"{row.expected:.3g} "
            f"({row.expected_low:.3g} to {row.expected_high:.3g})",
            "success rate": f"{row.success:.0%} ({row.success_low:.0%} to {row.success_high:.0%})",
        }
        for row in measured.itertuples()
    ]
    return f"<div>{pd.DataFrame(rows).to_html(index=False, border=0)}</div>"


def _grid(values: pd.DataFrame, marked: pd.DataFrame) -> str:
    """Return the table of medians by learning rate, with marks on the ones within the margin."""
    shown = values.map(lambda value: _number(value, ".4g", "failed"))
    shown = shown.mask(marked, "<mark>" + shown + "</mark>").rename(columns=escape)
    shown.insert(0, "lr", [f"{lr:.4g}" for lr in values.index], allow_duplicates=True)
    return f"<div>{shown.to_html(index=False, border=0, escape=False)}</div>"


def _number(value: float, form: str, otherwise: str = "none") -> str:
    return format(value, form) if math.isfinite(value) else otherwise


def _svg(figure: Figure) -> str:
    """Return a figure as a part of a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    drawing = file.getvalue()
    return drawing[drawing.index("<svg") :]
