"""A report of a sweep: one HTML file, to look at and to pass on."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from momo_wrap.sweep.at_random import at_random_lr
from momo_wrap.sweep.comparing import medians, near, of_task, tolerance
from momo_wrap.sweep.plots import draw, draw_step_sizes, positive_range, step_sizes
from momo_wrap.sweep.results_file import VERSIONS

_SIZE = (5.4, 4.3)  # inches: wide enough beside another figure, and legible on a telephone
_SMALL = (3.6, 2.7)
_FIGURES: Any = {"font.size": 12, "svg.fonttype": "none", "svg.hashsalt": "momo_wrap"}
_POINTS = 300  # of a line; more can't be told apart
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { margin: 2.2rem 0 0.5rem; font-size: 1.3rem; }
h3 { margin: 1.6rem 0 0.4rem; font-size: 1.05rem; } p { margin: 0.4rem 0 0.8rem; color: #444; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1rem; } .small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; } th { white-space: normal; vertical-align: bottom; max-width: 11rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; } td.near { background: #d9eaf7; font-weight: 600; }
td.failed { color: #a33; }
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
    title: str = "Learning rate sweep",
) -> None:
    """Write what a sweep has found into one HTML file that needs no server and no network.

    For each task: the tolerance of each optimizer and what to expect at a random learning rate; the
    results against the learning rate, as a figure and as a table of medians over seeds, in which
    those within the margin are marked; and the runs that failed, with their tracebacks. Then the
    effective learning rates over training.

    Args:
        results: What `run` or `load` returned.
        path: The file.
        margin: How much worse than the best is near enough, see `tolerance`.
        worst: What failed runs count as, see `at_random_lr`.
        higher_is_better: Whether the column is an accuracy or the like; False: a loss.
        column: What is compared: "score" or "loss", or another.
        decades: The width of the window of random learning rates.
        curves: What `load_curves` returned; each is drawn.
        title: The heading.

    Raises:
        ValueError: As `tolerance` and `at_random_lr`.
    """
    at_random = at_random_lr(results, margin, worst, higher_is_better, column, decades)
    measured = tolerance(results, margin, higher_is_better, column).merge(
        at_random, on=["task", "optimizer"], suffixes=("", "_at_random")
    )
    body = [f"<h1>{html.escape(title)}</h1>", _about(results)]
    with mpl.rc_context(_FIGURES):
        for task, own in measured.groupby("task", sort=False):
            one, near_best = str(task), of_task("margin", margin, str(task))
            body.append(f"<h2>{html.escape(one)}</h2>{_summary(own, column, near_best, decades)}")
            figures = [draw(results, one, column, higher_is_better, near_best, size=_SIZE)]
            if column != "loss" and results.loc[results["task"] == one, "loss"].notna().any():
                figures.append(draw(results, one, "loss", False, size=_SIZE))
            body.append(f'<div class="figures">{"".join(map(_svg, figures))}</div>')
            body.append(_grid(results, one, column, near_best, higher_is_better))
        if curves:
            body.append(_curves(curves))
    body.append(_failures(results))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")


def _about(results: pd.DataFrame) -> str:
    """Tell what was run."""
    rates, seeds = results["lr"].unique(), results["seed"].nunique()
    failed = int((results["status"] != "ok").sum())
    versions = {name: " and ".join(results[name].unique()) for name in VERSIONS}
    by = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"<p>{len(results):,} runs: {len(rates)} learning rates from {min(rates):g} to "
        f"{max(rates):g}, {seeds} seed{'s' * (seeds > 1)}; {failed:,} diverged or failed. "
        f"{html.escape(by)}.</p>"
    )


def _summary(measured: pd.DataFrame, column: str, margin: float, decades: float) -> str:
    """Return the table of what is measured of each optimizer."""
    name = html.escape(column)
    head = ["optimizer", f"best {name}", "at lr", "decades tolerated", "from lr", "to lr"]
    head += [f"expected {name} at a random lr (over seeds)", "success rate (over seeds)"]
    rows = [
        (
            html.escape(row.optimizer),
            *(f"{row.best:.4g}", _rate(row.best_lr), _number(row.decades, ".1f")),
            *(_rate(row.lowest), _rate(row.highest)),
            f"{row.expected:.3g} ({row.expected_low:.3g} to {row.expected_high:.3g})",
            f"{row.success:.0%} ({row.success_low:.0%} to {row.success_high:.0%})",
        )
        for row in measured.itertuples()
    ]
    return (
        f"{_table(head, rows)}<p>Tolerated: the median over seeds is within {margin:g} of the best "
        f"median. At random: log-uniform on the {decades:g} decades that are best for the "
        "optimizer; success: within the margin.</p>"
    )


def _grid(
    results: pd.DataFrame, task: str, column: str, margin: float, higher_is_better: bool
) -> str:
    """Return the table of medians by learning rate; those that are near the best are marked."""
    values = medians(results, task, column, higher_is_better)
    marked = near(values, values, margin, higher_is_better)
    rows = []
    for lr, row in values.iterrows():
        cells = [_rate(lr)]
        for name, value in row.items():
            kind = "near" if marked.loc[lr, name] else "" if math.isfinite(value) else "failed"
            cells.append(f'<td class="{kind}">{_number(value, ".4g", "failed")}</td>')
        rows.append(cells)
    head = ["lr", *(html.escape(str(name)) for name in values.columns)]
    about = f"Median {html.escape(column)} over seeds; marked: within {margin:g} of the best"
    return f"<h3>{about}</h3>{_table(head, rows)}"


def _curves(curves: Mapping[str, Any]) -> str:
    frames = {title: step_sizes(title, curve, "step") for title, curve in curves.items()}
    limits = positive_range(list(frames.values()))
    figures = []
    for title, frame in frames.items():
        figure = Figure(figsize=_SMALL, layout="constrained")
        axes = figure.subplots()
        draw_step_sizes(axes, title, frame.iloc[:: 1 + len(frame) // _POINTS], "step", limits)
        axes.set_xlabel("step")
        figures.append(_svg(figure))
    return (
        "<h2>Effective learning rate over training</h2><p>Dots: the effective learning rate; "
        f'dashed: its cap, lr.</p><div class="figures small">{"".join(figures)}</div>'
    )


def _failures(results: pd.DataFrame) -> str:
    failed = results[results["status"] == "error"]
    if failed.empty:
        return ""
    told = []
    for row in failed.to_dict("records"):
        about = f"{row['task']}, {row['optimizer']}, lr {row['lr']:g}, seed {row['seed']}"
        text = row.get("traceback") or row["message"]
        told.append(
            f"<details><summary>{html.escape(about)}: {html.escape(row['message'])}</summary>"
            f"<pre>{html.escape(text)}</pre></details>"
        )
    return f"<h2>Runs that failed</h2>{''.join(told)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells, which may have their tags already."""
    names = "".join(f"<th>{name}</th>" for name in head)
    lines = (
        "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _number(value: float, form: str, otherwise: str = "none") -> str:
    return format(value, form) if math.isfinite(value) else otherwise


def _rate(lr: float) -> str:
    return f"{float(f'{lr:.3g}'):g}" if math.isfinite(lr) else "none"


def _svg(figure: Figure) -> str:
    """Return a figure as a part of a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    drawing = file.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>"
