"""What is kept of a sweep: its trials in a storage, and its CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from momo_wrap.sweep.grid import Run
from momo_wrap.sweep.results_file import Row, key, read, table, write
from momo_wrap.sweep.storage import Storage


class Kept:
    """Where a sweep is kept: its CSV file, the path or URL of its storage, its name there."""

    def __init__(self, path: str | PathLike[str], storage: str | PathLike[str] | None) -> None:
        self.path = Path(path).absolute()  # a train function may change the directory
        where = str(self.path.with_suffix(".journal") if storage is None else storage)
        self.where = where if "://" in where else str(Path(where).absolute())
        self.name = self.path.stem
        self._trials: Storage | None = None

    def trials(self) -> Storage:
        """Return the storage, which is made if there is none."""
        self._trials = self._trials or Storage(self.where, self.name)
        return self._trials

    def close(self) -> None:
        """Close the connections to a database."""
        if self._trials is not None:
            self._trials.close()

    def has_trials(self) -> bool:
        """Tell whether there is a storage."""
        return "://" in self.where or Path(self.where).exists()

    def rows(self) -> dict[Run, Row]:
        """Return the rows of all runs that have ended: of the storage, else of the file."""
        rows = read(self.path) | (self.trials().results() if self.has_trials() else {})
        names: dict[str, set[str]] = {}
        in_order = sorted(rows, key=lambda run: (run.seed, run.lr))  # whichever ended first
        checked = {run: _consistent(rows[run], names) for run in in_order}
        return {run: checked[run] for run in rows}

    def export(self, rows: Mapping[Run, Row], order: Iterable[Run] = ()) -> None:
        """Write the file, if it does not have just these runs: those that it has come first."""
        in_file = list(read(self.path))
        runs = dict.fromkeys(run for run in [*in_file, *order, *rows] if run in rows)
        if list(runs) != in_file:
            write(self.path, [rows[run] for run in runs])


def load(path: str | PathLike[str], storage: str | PathLike[str] | None = None) -> pd.DataFrame:
    """Load the results of a sweep, also of one that is under way or was killed.

    Args:
        path: The CSV file that was given to `run`.
        storage: The storage that was given to `run`.

    Returns:
        One row per run. What the runs returned beyond score and loss, and the settings, are
        columns of their own, missing where a run has none. `status` is "ok", "diverged" or
        "error", with the reason in `message`, and in `traceback`, which the storage alone keeps.

    Raises:
        FileNotFoundError: There is no such file, nor a storage.
        ValueError: It is no file of results.
    """
    with closing(Kept(path, storage)) as kept:
        if not kept.path.exists() and not kept.has_trials():
            raise FileNotFoundError(f"There is no {kept.path}, and no {kept.where} beside it.")
        return table(kept.rows().values())


def forget(
    path: str | PathLike[str], storage: str | PathLike[str] | None = None, **selection: Any
) -> int:
    """Forget the results of some runs, so that `run` begins them again.

    Args:
        path: The CSV file that was given to `run`.
        storage: The storage that was given to `run`.
        **selection: Columns of the results and the value that they must have, or a list of those
            that they may have: `status="error"`.

    Returns:
        How many were forgotten.

    Raises:
        FileNotFoundError: There is no such file, nor a storage.
        ValueError: A name in `selection` is no column.
    """
    chosen = selected(load(path, storage), selection)
    runs = {key(row) for row in chosen[list(Run._fields)].to_dict("records")}
    with closing(Kept(path, storage)) as kept:
        rows = kept.rows()
        if kept.has_trials():
            kept.trials().forget(runs)
        kept.export({run: row for run, row in rows.items() if run not in runs})
    return len(runs)


def selected(results: pd.DataFrame, selection: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows that have the values of a selection, see `forget`."""
    for name, value in selection.items():
        if name not in results.columns:
            raise ValueError(f"The results have no column {name!r}, only {list(results.columns)}.")
        values = list(value) if isinstance(value, (list, tuple, set, range)) else [value]
        results = results[results[name].isin(values)]
    return results


def _consistent(row: Row, names: dict[str, set[str]]) -> Row:
    """Return the row, as failed where it would mix other results into the columns of its task."""
    if row["status"] != "ok":
        return row
    given = {*row["results"], *(name for name in ("loss", "score") if row[name] == row[name])}
    expected = names.setdefault(row["task"], given)
    if given == expected:
        return row
    message = f"It returned {sorted(given)}, earlier runs of its task {sorted(expected)}."
    return {**row, "status": "error", "message": message}
