"""The rows of a sweep, as a table and in the CSV file that they are exported to and taken from."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import momo_wrap
from momo_wrap.sweep.grid import Run

# `results` and `settings` are JSON objects: their names differ between tasks and sweeps, and a run
# that fails knows of none.
COLUMNS = (
    *("task", "optimizer", "lr", "seed", "status", "score", "loss", "seconds", "results"),
    *("settings", "wrapped", "base", "curve", "momo_wrap", "torch", "python", "message"),
)
VERSIONS = ("momo_wrap", "torch", "python")

Row = dict[str, Any]


def key(row: Row) -> Run:
    """Return the run that a row is of."""
    return Run(*(row[name] for name in Run._fields))


def empty_row(run: Run) -> Row:
    """Return the row of a run that has no results yet."""
    texts = dict.fromkeys((*COLUMNS, "traceback"), "")
    nothing = dict.fromkeys(("score", "loss", "seconds"), math.nan)
    packed: Row = {"results": {}, "settings": {}, "wrapped": False}
    return {**texts, **run._asdict(), **versions(), **nothing, **packed}


def versions() -> dict[str, str]:
    """Return the versions of what the results depend on."""
    own = (momo_wrap.__version__, str(torch.__version__), platform.python_version())
    return dict(zip(VERSIONS, own, strict=True))


def to_text(row: Row) -> dict[str, str]:
    """Return the values of a row as texts, which hold any number."""
    return {name: _cell(row[name]) for name in (*COLUMNS, "traceback")}


def from_text(texts: Mapping[str, str]) -> Row:
    """Return the row of which these are the values."""
    row: Row = dict(texts)
    for name in ("lr", "score", "loss", "seconds"):
        row[name] = float(row[name] or "nan")
    row["seed"] = int(row["seed"])
    row["wrapped"] = row["wrapped"] == "True"
    for name in ("results", "settings"):
        row[name] = json.loads(row[name])
        if not isinstance(row[name], dict):
            raise ValueError(f"{name} is no JSON object")  # noqa: TRY004 - the file is at fault
    return row


def read(path: Path) -> dict[Run, Row]:
    """Return the rows of a file of results; none where there is none, or it is empty."""
    if not path.exists() or path.stat().st_size == 0:
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    if tuple(head) != COLUMNS:
        raise ValueError(
            f"{path} is not a file of results of this version of momo_wrap.sweep: its columns are "
            f"{head}, expected {list(COLUMNS)}. Give another path."
        )
    rows: dict[Run, Row] = {}
    for number, line in enumerate(lines, start=2):
        try:
            row = from_text({**dict(zip(COLUMNS, line, strict=True)), "traceback": ""})
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {path} is no row of results ({error}): {','.join(line)!r}. "
                "Remove it; its run will be repeated."
            ) from None
        if key(row) in rows:
            raise ValueError(
                f"Line {number} of {path} is a second row of the run ({key(row)}). Remove one."
            )
        rows[key(row)] = row
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a file of results, without tracebacks, so that there is a whole one at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([texts[name] for name in COLUMNS] for texts in map(to_text, rows))
    unfinished.replace(path)


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table, see `load`."""
    packed = ("results", "settings")
    flat = [
        {**{n: v for n, v in row.items() if n not in packed}, **row["results"], **row["settings"]}
        for row in rows
    ]
    names = [name for name in (*COLUMNS, "traceback") if name not in packed]
    return pd.DataFrame(flat, columns=None if flat else names)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return str(value)
