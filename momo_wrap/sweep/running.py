"""Runs of all combinations, continued where they were left."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
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
    check_picklable,
    named_functions,
)
from momo_wrap.sweep.kept import Kept
from momo_wrap.sweep.processes import Work, train_here, train_in_processes
from momo_wrap.sweep.results_file import COLUMNS, VERSIONS, Row, key, table, versions
from momo_wrap.sweep.storage import Storage
from momo_wrap.sweep.training import plain


def run(
    train: Train | Mapping[str, Train],
    optimizers: Mapping[str, OptimizerFactory],
    learning_rates: Iterable[float],
    seeds: Iterable[int],
    path: str | PathLike[str],
    *,
    storage: str | PathLike[str] | None = None,
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

    Each run is a trial of an Optuna study. Called again, also after it was killed, or by several
    processes or machines at once, the sweep takes up the runs that have no result and that nobody
    trains; it returns when all have ended. A run whose process is killed is begun again. One that
    fails is kept: its `status` is "diverged" where loss or score are not finite or a
    `FloatingPointError` was raised, and "error" after any other exception, or where its process has
    died five times; see `message` and `traceback`. `forget` lets it be repeated. The changes that
    can't be told from what is stored, those of the train function above all, belong in `settings`.

    Args:
        train: The train function, whose name is that of its task; or several by task.
        optimizers: Functions `factory(params, lr)` that return an optimizer, by name.
        learning_rates: The learning rates, positive.
        seeds: The seeds.
        path: The CSV file that all results are written to in the end, and those that it has already
            are taken from. Curves are kept in a folder beside it.
        storage: Where the trials are kept: the path of a journal, or the URL of a database such as
            "postgresql://user@host/database", which many machines may share; the study in it is
            named like the CSV file. None: a journal beside the CSV file.
        settings: What else the results depend on, such as `{"epochs": 20}`; kept with each row.
        processes: The number of processes; None: as many as fill the cores; 0: run in this
            process, for notebooks and debugging.
        threads: The number of torch's threads in each process.
        progress: Whether to show a progress bar.

    Returns:
        The rows of this call's runs, see `load`. There may be more, which `load` returns too.

    Raises:
        TypeError: A function can't be called or sent to other processes; a value has a wrong type.
        ValueError: A list is empty or has a value twice; the file is no file of results, or its
            results were made with other settings.
        RuntimeError: No process can load the functions, or reach the storage.
    """
    functions = named_functions(train, optimizers)
    runs = all_runs(functions, learning_rates, seeds)
    kept = _plain_settings(settings)
    _check_counts(processes, threads)
    processes = _fill_cores(threads) if processes is None else processes
    if processes:
        check_picklable(functions)
    with closing(Kept(path, storage)) as sweep:
        rows = sweep.rows()
        _check_settings(rows.values(), kept, sweep.path)
        _warn_of_versions(rows.values(), sweep.path)
        rest = [run for run in runs if run not in rows]
        try:
            if rest:
                _check_settings([{"settings": sweep.trials().agree(kept)}], kept, sweep.path)
                work = Work(rest, functions, sweep.where, sweep.name, sweep.path, threads, kept)
                done = len(runs) - len(rest)
                bar = tqdm(total=len(runs), initial=done, unit="run", disable=not progress)
                _train(work, sweep.trials(), processes, bar)
        finally:
            rows = sweep.rows()
            sweep.export(rows, runs)
    wanted = [rows[run] for run in runs]
    _warn_of_errors(wanted)
    return table(wanted)


def _train(work: Work, trials: Storage, processes: int, bar: tqdm) -> None:
    with bar:
        look = _Look(trials, set(work.runs), bar)
        if processes:
            train_in_processes(work, trials, processes, look)
        else:
            train_here(work, trials, look)


class _Look:
    """Counts the runs without a result, and shows how far the sweep is."""

    def __init__(self, trials: Storage, runs: set[Run], bar: tqdm) -> None:
        self._trials, self._rest, self._bar = trials, runs, bar
        self._failed = 0

    def __call__(self) -> int:
        results = self._trials.results()
        for run in self._rest & results.keys():
            self._rest.remove(run)
            self._bar.update()
            if results[run]["status"] == "error":
                self._failed += 1
                self._bar.set_postfix(failed=self._failed)
                if self._failed == 1:  # do not let an evening's sweep fail run by run in silence
                    self._bar.write(f"Failed ({run}): {results[run]['message']}", file=sys.stderr)
        return len(self._rest)


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


def _fill_cores(threads: int) -> int:
    """Return how many processes fill the cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // threads)


def _check_settings(rows: Iterable[Row], settings: dict[str, Any], path: Path) -> None:
    for row in rows:
        if row["settings"] != settings:
            raise ValueError(
                f"The results in {path} were made with the settings {row['settings']}, this sweep "
                f"has {settings}. Give another path, or the same settings."
            )


def _warn_of_versions(rows: Iterable[Row], path: Path) -> None:
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


def _warn_of_errors(rows: list[Row]) -> None:
    failed = [row for row in rows if row["status"] == "error"]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(rows)} runs failed, the first ({key(failed[0])}) with: "
            f"{failed[0]['message']} They count as the worst. To repeat them, call "
            "momo_wrap.sweep.forget with status='error', and run again.",
            stacklevel=3,
        )
