"""The rows of a sweep, in the CSV file that they are exported to and taken from, and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

# `results` and `settings` are JSON objects: their names differ between tasks and sweeps.
COLUMNS = (
    *("task", "optimizer", "lr", "seed", "status", "score", "loss", "seconds", "results"),
    *("settings", "wrapped", "base", "curve", "momo_wrap", "torch", "python", "message"),
)
VERSIONS = ("momo_wrap", "torch", "python")
PACKED = ("results", "settings")

Row = dict[str, Any]


def _number(text: str) -> float:
    return float(text or "nan")


_PARSERS: dict[str, Callable[[str], Any]] = {
    **{"lr": float, "seed": int, "wrapped": "True".__eq__},
    **dict.fromkeys(("score", "loss", "seconds"), _number),
    **dict.fromkeys(PACKED, json.loads),
}


class Run(NamedTuple):
    """What tells one training from the others of a sweep."""

    task: str
    optimizer: str
    lr: float
    seed: int


def read(path: Path) -> dict[Run, Row]:
    """Return the rows of a file of results; none where there is none."""
    if not path.exists():
        return {}
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = frame.assign(**{name: frame[name].map(parse) for name, parse in _PARSERS.items()})
        rows = frame.assign(traceback="")[[*COLUMNS, "traceback"]].to_dict("records")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no file of results: {error}. Give another path.") from error
    if (twice := frame.duplicated(list(Run._fields))).any():
        raise ValueError(f"{path} has a run twice, again in row {twice.idxmax() + 1}. Remove one.")
    return {Run(*(row[name] for name in Run._fields)): row for row in rows}


def write(path: Path, rows: dict[Run, Row]) -> None:
    """Write a file of results, without tracebacks, if it does not have just these runs."""
    if list(rows) != list(read(path)) or not path.exists():
        frame = pd.DataFrame(rows.values(), columns=COLUMNS)
        save(frame.assign(**{name: frame[name].map(json.dumps) for name in PACKED}), path)


def save(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV file so that there is a whole one at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    frame.to_csv(unfinished, index=False, lineterminator="\n")
    unfinished.replace(path)


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table, see `load`."""
    rows = list(rows)
    names = [name for name in (*COLUMNS, "traceback") if name not in PACKED]
    unpacked = pd.DataFrame([row["results"] | row["settings"] for row in rows])
    return pd.DataFrame(rows, columns=names).join(unpacked)
