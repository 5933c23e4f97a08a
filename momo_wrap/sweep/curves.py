"""Curves of single runs, a CSV file for each, beside the file of results."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from momo_wrap.sweep.grid import Run
from momo_wrap.sweep.results_file import load


def curve_path(results_path: Path, run: Run) -> Path:
    """Return where the curve of a run is kept.

    Args:
        results_path: The file of results.
        run: The run.

    Returns:
        A path in a folder beside it; different runs have different ones.
    """
    name = f"{run.task}, {run.optimizer}, lr {run.lr!r}, seed {run.seed}"
    return results_path.with_name(f"{results_path.stem}_curves") / f"{quote(name, safe=' ,+')}.csv"


def write_curve(path: Path, curve: Mapping[str, Sequence[float]]) -> None:
    """Write a curve, so that there is a whole file or none.

    Args:
        path: Where to.
        curve: Columns of equal length by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(curve)
        writer.writerows(zip(*curve.values(), strict=True))
    unfinished.replace(path)


def load_curves(path: str | PathLike[str], **selection: Any) -> dict[str, pd.DataFrame]:
    """Load the curves of a sweep that returned some.

    Args:
        path: The file of results, as given to `run`.
        **selection: Columns of the results and the value that they must have, or a list of those
            that they may have: `optimizer="AdamW + MoMo", seed=0`.

    Returns:
        The curves by the name of the run, in which those of `task`, `optimizer`, `lr` and `seed`
        are left out that are the same for all. Runs that have no curve are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name in `selection` is no column.

    Example:
        >>> plot_step_sizes(load_curves("sweep.csv", optimizer="AdamW + MoMo", seed=0), "lr.png")
    """
    results = load(path)
    for name, value in selection.items():
        if name not in results.columns:
            raise ValueError(f"The results have no column {name!r}, only {list(results.columns)}.")
        values = list(value) if isinstance(value, (list, tuple, set, range)) else [value]
        results = results[results[name].isin(values)]
    results = results[results["curve"] != ""].sort_values(["task", "optimizer", "lr", "seed"])
    parts = [("task", "{}"), ("optimizer", "{}"), ("lr", "lr {:g}"), ("seed", "seed {}")]
    varying = [(name, form) for name, form in parts if results[name].nunique() > 1]
    folder = Path(path).parent
    curves = {}
    for row in results.to_dict("records"):
        label = ", ".join(form.format(row[name]) for name, form in varying or parts)
        curves[label] = pd.read_csv(folder / row["curve"])
    return curves
