"""Runs of all combinations, continued where they were left."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from momo_wrap.sweep.grid import (
    OptimizerFactory,
    Run,
    Train,
    all_runs,
    named_functions,
    pickled,
)
from momo_wrap.sweep.processes import Work, default_processes, in_processes, in_this_process
from momo_wrap.sweep.results_file import (
    COLUMNS,
    VERSIONS,
    ResultsFile,
    Row,
    check_settings,
    key,
    table,
)
from momo_wrap.sweep.training import plain, versions


def run(
    train: Train | Mapping[str, Train],
    optimizers: Mapping[str, OptimizerFactory],
    learning_rates: Iterable[float],
    seeds: Iterable[int],
    path: str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    processes: int | None = None,
    threads: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Train with every optimizer at every learning rate and seed, and continue where it was left.

    `train(lr, optimizer_factory, seed)` builds its model, makes its optimizer with
    `optimizer_factory(model.parameters(), lr)`, trains, and returns a dict with `"loss"`,
    `"score"` or both, as numbers or one-element tensors. Further entries that are numbers, texts
    or bools are kept as columns. `"curve"` may hold columns of equal length by name, such as
    `Recorder.curve()` returns; without loss and score, the last value of its `"loss"` counts.
    torch, NumPy and `random` are seeded with `seed` before.

    The runs are spread over processes that are spawned, so that functions must be at the top level
    of a module or script, and a script must call this under `if __name__ == "__main__":`.

    Each run that ends adds a line to the CSV file. Called again, also after it was killed, the
    sweep takes up the runs that have no line. A run that fails has one too: its `status` is
    "diverged" where loss or score are not finite or a `FloatingPointError` was raised, and "error"
    after any other exception or the death of its process, with the reason in `message`. Delete the
    line to repeat the run. The changes that a file can't tell, those of the train function above
    all, belong in `settings`.

    Args:
        train: The train function, whose name is that of its task; or several by task.
        optimizers: Functions `factory(params, lr)` that return an optimizer, by name.
        learning_rates: The learning rates, positive.
        seeds: The seeds.
        path: The CSV file. Curves are kept in a folder beside it.
        settings: What else the results depend on, such as `{"epochs": 20}`; kept with each row.
        processes: The number of processes; None: as many as fill the cores; 0: run in this
            process, for notebooks and debugging.
        threads: The number of torch's threads in each process.
        progress: Whether to show a progress bar.

    Returns:
        The rows of this call's runs, see `load`. The file may have more, which `load` returns too.

    Raises:
        TypeError: A function can't be called or sent to other processes; a value has a wrong type.
        ValueError: A list is empty or has a value twice; the file is no file of results, or its
            results were made with other settings.
        RuntimeError: Another sweep is writing to the file, or no process can load the functions.
    """
    functions = named_functions(train, optimizers)
    runs = all_runs(functions, learning_rates, seeds)
    kept = _plain_settings(settings)
    _check_counts(processes, threads)
    processes = default_processes(threads) if processes is None else processes
    path = Path(path).absolute()  # the train function may change the directory
    payload = pickled(functions) if processes else b""
    with ResultsFile(path) as file:
        check_settings(file.rows, kept, path)
        _warn_of_versions(file.rows, path)
        finished = file.finished()
        rest = [run for run in runs if run not in finished]
        if processes:
            rows = in_processes(rest, Work(payload, path, threads), processes)
        else:
            rows = in_this_process(rest, functions, path, threads)
        done = len(runs) - len(rest)
        bar = tqdm(total=len(runs), initial=done, unit="run", disable=not progress)
        _collect(rows, file, kept, bar)
        wanted = _in_order(file.rows, runs)
    _warn_of_errors(wanted, path)
    return table(wanted)


def _collect(rows: Iterator[Row], file: ResultsFile, settings: dict[str, Any], bar: tqdm) -> None:
    """Write each row as it comes."""
    failed = 0
    names = {row["task"]: _names(row) for row in reversed(file.rows) if row["status"] == "ok"}
    with bar:
        try:
            for row in rows:
                row = {**_consistent(row, names, settings), "settings": settings}
                file.append(row)
                if row["status"] == "error":
                    failed += 1
                    bar.set_postfix(failed=failed)
                    if failed == 1:  # do not let an evening's sweep fail run by run in silence
                        bar.write(f"Failed ({key(row)}): {row['message']}", file=sys.stderr)
                bar.update()
        finally:
            rows.close()  # type: ignore[attr-defined]


def _consistent(row: Row, names: dict[str, set[str]], settings: dict[str, Any]) -> Row:
    """Return the row, as failed where it would mix other results into the columns of its task."""
    if row["status"] != "ok":
        return row
    given = _names(row)
    expected = names.setdefault(row["task"], given)
    if given != expected:
        message = f"It returned {sorted(given)}, earlier runs of its task {sorted(expected)}."
        return {**row, "status": "error", "message": message}
    if both := sorted(given & settings.keys()):
        message = f"It returned {both}, which is the name of a setting."
        return {**row, "status": "error", "message": message, "results": {}}
    return row


def _names(row: Row) -> set[str]:
    """Return the names of what a run that did not fail has returned."""
    return {*row["results"], *(name for name in ("loss", "score") if row[name] == row[name])}


def _plain_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = {str(name): plain(name, value) for name, value in (settings or {}).items()}
    if taken := sorted(kept.keys() & set(COLUMNS)):
        raise ValueError(f"Settings can't be called {taken}: the file has such columns already.")
    return kept


def _check_counts(processes: int | None, threads: int) -> None:
    if processes is not None and processes < 0:
        raise ValueError(f"processes must be None, 0 or positive, got {processes}.")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")


def _warn_of_versions(rows: list[Row], path: Path) -> None:
    now = versions()
    others = {tuple(row[name] for name in VERSIONS) for row in rows} - {tuple(now.values())}
    if others:
        was = "; ".join(
            ", ".join(map(" ".join, zip(VERSIONS, v, strict=True))) for v in sorted(others)
        )
        warnings.warn(
            f"{path} has results of other versions ({was}) than this process's ({now}). The rows "
            "tell which is which; give another path for results of one version only.",
            stacklevel=3,
        )


def _warn_of_errors(rows: list[Row], path: Path) -> None:
    failed = [row for row in rows if row["status"] == "error"]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(rows)} runs failed, the first ({key(failed[0])}) with: "
            f"{failed[0]['message']} They count as the worst. Delete their lines in {path} and "
            "call run again to repeat them.",
            stacklevel=3,
        )


def _in_order(rows: list[Row], runs: list[Run]) -> list[Row]:
    by_run = {key(row): row for row in rows}
    return [by_run[run] for run in runs]
