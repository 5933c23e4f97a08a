"""The file of results: one line per finished run, whole even where a sweep is killed."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd

from momo_wrap.sweep.grid import Run

if TYPE_CHECKING:
    from typing_extensions import Self

if sys.platform != "win32":
    import fcntl

# `results` and `settings` are JSON objects: their names differ between tasks and sweeps, and a run
# that fails knows of none.
COLUMNS = (
    *("task", "optimizer", "lr", "seed", "status", "score", "loss", "seconds", "results"),
    *("settings", "wrapped", "base", "curve", "momo_wrap", "torch", "python", "message"),
)
VERSIONS = ("momo_wrap", "torch", "python")

Row = dict[str, Any]


class ResultsFile:
    """A file of results that this process alone may add to.

    Each row is written at once and reaches the disk before the next run is begun. What a killed
    process left of a row lacks the end of the line, and is removed.

    Args:
        path: The CSV file; it is made if there is none.

    Attributes:
        rows: The rows in it.

    Raises:
        ValueError: It is no file of results.
        RuntimeError: Another sweep is writing to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)
        try:
            self._lock()
            self._remove_unfinished()
            self.rows = read(path)
            if path.stat().st_size == 0:
                self._write(COLUMNS)
        except BaseException:
            self._file.close()
            raise

    def finished(self) -> set[Run]:
        """Return the runs that there are results of, also of those that failed."""
        return {key(row) for row in self.rows}

    def append(self, row: Row) -> None:
        """Add a row, and wait until it is on the disk.

        Args:
            row: A value for each of `COLUMNS`.

        Raises:
            OSError: It could not be written wholly. The next sweep removes what was.
        """
        self._write([_cell(row[name]) for name in COLUMNS])
        self.rows.append(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()  # releases the lock

    def _write(self, cells: Any) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode()
        if self._file.write(data) != len(data):
            raise OSError(f"A row could not be written wholly to {self._path}; is the disk full?")
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Another sweep is writing to {self._path}. Wait for it, or give another path."
            ) from None

    def _remove_unfinished(self) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        # The header of a file that is something else is not ours to remove.
        if whole or ",".join(COLUMNS).encode().startswith(data):
            os.truncate(self._path, whole)


def key(row: Row) -> Run:
    """Return the run that a row is of."""
    return Run(row["task"], row["optimizer"], row["lr"], row["seed"])


def read(path: Path) -> list[Row]:
    """Return the rows of a file of results; none where it is empty.

    Args:
        path: The file.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has other columns, or a line that is damaged or repeats a run.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines:
        return []
    if tuple(lines[0]) != COLUMNS:
        raise ValueError(
            f"{path} is not a file of results of this version of momo_wrap.sweep: its columns are "
            f"{lines[0]}, expected {list(COLUMNS)}. Give another path."
        )
    rows: dict[Run, Row] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _parsed(line)
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
    return list(rows.values())


def load(path: str | PathLike[str]) -> pd.DataFrame:
    """Load a file of results.

    Args:
        path: The file that was given to `run`.

    Returns:
        One row per run. What the runs returned beyond score and loss, and the settings, are
        columns of their own, missing where a run has none. `status` is "ok", "diverged" or
        "error", with the reason in `message`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of results.
    """
    return table(read(Path(path)))


def table(rows: list[Row]) -> pd.DataFrame:
    """Return rows as a table, see `load`."""
    packed = ("results", "settings")
    flat = [
        {**{n: v for n, v in row.items() if n not in packed}, **row["results"], **row["settings"]}
        for row in rows
    ]
    return pd.DataFrame(flat, columns=None if rows else [n for n in COLUMNS if n not in packed])


def check_settings(rows: list[Row], settings: Mapping[str, Any], path: Path) -> None:
    """Refuse to add to results that were made with other settings.

    Args:
        rows: The rows that there are.
        settings: Those of this sweep.
        path: The file, for the message.

    Raises:
        ValueError: The settings differ.
    """
    for row in rows:
        if row["settings"] != settings:
            raise ValueError(
                f"The results in {path} were made with the settings {row['settings']}, this sweep "
                f"has {dict(settings)}. Give another path, or the same settings."
            )


def _parsed(line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise ValueError(f"{len(line)} values instead of {len(COLUMNS)}")
    row: Row = dict(zip(COLUMNS, line, strict=True))
    for name in ("lr", "score", "loss", "seconds"):
        row[name] = float(row[name] or "nan")
    row["seed"] = int(row["seed"])
    row["wrapped"] = row["wrapped"] == "True"
    for name in ("results", "settings"):
        row[name] = json.loads(row[name])
        if not isinstance(row[name], dict):
            raise ValueError(f"{name} is no JSON object")  # noqa: TRY004 - the file is at fault
    return row


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return str(value)
