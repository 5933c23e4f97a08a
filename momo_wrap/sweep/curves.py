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
from momo_wrap.sweep.kept import load, selected


def curve_path(results_path: Path, run: Run) -> Path:
    """Return where the curve of a run is kept, in a folder beside the file of results."""
    name = f"{run.task}, {run.optimizer}, lr {run.lr!r}, seed {run.seed}"
    return results_path.with_name(f"{results_path.stem}_curves") / f"{quote(name, safe=' ,+')}.csv"


def write_curve(path: Path, curve: Mapping[str, Sequence[float]]) -> None:
    """Write a curve, columns of equal length by name, so that there is a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(curve)
        writer.writerows(zip(*curve.values(), strict=True))
    unfinished.replace(path)


def load_curves(
    path: str | PathLike[str], storage: str | PathLike[str] | None = None, **selection: Any
) -> dict[str, pd.DataFrame]:
    """Load the curves of a sweep that returned some.

    Args:
        path: The CSV file that was given to `run`; the curves are in a folder beside it.
        storage: The storage that was given to `run`.
        **selection: Columns of the results and the value that they must have, or a list of those
            that they may have: `optimizer="AdamW + MoMo", seed=0`.

    Returns:
        The curves by the name of the run, in which those of `task`, `optimizer`, `lr` and `seed`
        are left out that are the same for all. Runs that have no curve are left out.

    Raises:
        FileNotFoundError: There is no such file; or a curve is on another machine.
        ValueError: A name in `selection` is no column.

    Example:
        >>> plot_step_sizes(load_curves("sweep.csv", optimizer="AdamW + MoMo", seed=0), "lr.png")
    """
    results = selected(load(path, storage), selection)
    results = results[results["curve"] != ""].sort_values(["task", "optimizer", "lr", "seed"])
    parts = [("task", "{}"), ("optimizer", "{}"), ("lr", "lr {:g}"), ("seed", "seed {}")]
    varying = [part for part in parts if results[part[0]].nunique() > 1]
    folder = Path(path).parent
    if missing := [curve for curve in results["curve"] if not (folder / curve).exists()]:
        raise FileNotFoundError(
            f"{len(missing)} curves are not in {folder}, the first is {missing[0]}. They are on "
            "the machines that trained their runs: copy the folder, or select other runs."
        )
    curves = {}
    for row in results.to_dict("records"):
        label = ", ".join(form.format(row[column]) for column, form in varying or parts)
        curves[label] = pd.read_csv(folder / row["curve"])
    return curves
