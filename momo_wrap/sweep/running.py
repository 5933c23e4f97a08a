"""Runs of all combinations, continued where they were left."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from momo_wrap.sweep.results_file import COLUMNS, VERSIONS, Row, table, write
from momo_wrap.sweep.storage import Trials
from momo_wrap.sweep.training import OptimizerFactory, Train, Work, all_runs, plain, versions

_LOOK = 0.3  # seconds between two looks at what has ended
_WRITE = (
    "The functions must be at the top level of a module or script that can be imported (no lambda, "
    "none inside another; functools.partial of one is fine), and a script must call run under "
    '`if __name__ == "__main__":`. From a notebook, or to find other errors, run with processes=0.'
)


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
    `Recorder.curve()` returns. torch, NumPy and `random` are seeded with `seed` before.

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
    tasks = train if isinstance(train, Mapping) else {getattr(train, "__name__", "train"): train}
    runs, kept = all_runs(tasks, optimizers, learning_rates, seeds), plain(settings or {}, COLUMNS)
    if threads < 1 or (processes or 0) < 0:
        raise ValueError(f"Expected processes >= 0 and threads >= 1, got {processes}, {threads}.")
    trials = Trials(path, storage)
    rows = trials.rows(runs)
    _check(rows.values(), kept, trials.path)
    rest = [run for run in runs if run not in rows]
    work = Work(Trials(trials.path, trials.where), rest, tasks, optimizers, kept)
    number = _fill_cores(threads) if processes is None else processes
    if number:
        _check_sendable(work)
    if rest:
        trials.release()  # what Optuna tells of a new study comes before the bar
    bar = tqdm(total=len(runs), initial=len(runs) - len(rest), unit="run", disable=not progress)
    try:
        with bar:
            _train(work, number, threads, trials, bar)
    finally:
        rows = trials.rows(runs)
        write(trials.path, rows)
    wanted = [rows[run] for run in runs]
    _check(wanted, kept, trials.path)
    if failed := [row["message"] for row in wanted if row["status"] == "error"]:
        warnings.warn(
            f"{len(failed)} of {len(runs)} runs failed, the first with: {failed[0]} They count as "
            "the worst; `traceback` tells where. To repeat them, call momo_wrap.sweep.forget with "
            "status='error', and run again.",
            stacklevel=2,
        )
    return table(wanted)


def _train(work: Work, processes: int, threads: int, trials: Trials, bar: tqdm) -> None:
    """Train until all runs have ended, those of other processes too; in this process if none."""
    context, workers = multiprocessing.get_context("spawn"), list[Any]()
    is_loaded = context.RawValue("b", 0)  # without a lock, which a killed process could hold
    before, left, failed = torch.get_num_threads(), work.runs, 0
    try:
        while left:
            trials.release()
            if not processes:
                torch.set_num_threads(threads)
                time.sleep(0.0 if work.train_one() else _LOOK)
            else:
                _check_loaded(workers, is_loaded.value)
                workers = [worker for worker in workers if worker.is_alive()]
                for _ in range(min(len(trials.open(left)), processes - len(workers))):
                    # Not daemonic: a train function may start processes, such as a DataLoader's.
                    workers.append(context.Process(target=_serve, args=(work, threads, is_loaded)))
                    workers[-1].start()
                workers[0].join(_LOOK) if workers else time.sleep(_LOOK)
            results = trials.results()
            if ended := [run for run in left if run in results]:
                failed += sum(results[run]["status"] == "error" for run in ended)
                bar.set_postfix(failed=failed, refresh=False)
                bar.update(len(ended))
                left = [run for run in left if run not in results]
    finally:
        torch.set_num_threads(before)
        for worker in workers:
            worker.terminate()
            worker.join()


def _serve(work: Work, threads: int, is_loaded: Any) -> None:
    """Train, in a worker process, until another process trains each remaining run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep's own process answers to it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    work.trials.release()
    is_loaded.value = 1
    while work.train_one():
        pass


def _end_with_parent() -> None:
    """End at once when the sweep is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _fill_cores(threads: int) -> int:
    """Return how many processes fill the cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // threads)


def _check_sendable(work: Work) -> None:
    try:
        pickle.dumps(work)
    except Exception as error:  # what objects raise when they are pickled is up to them
        raise TypeError(
            f"Other processes can't be sent the functions: {error}. {_WRITE}"
        ) from error


def _check_loaded(workers: list[Any], is_loaded: bool) -> None:
    """Raise where processes end before they could train; others would do so too."""
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes and not is_loaded:
        ended = f"A process ended with exit code {codes[0]} before its first run"
        raise RuntimeError(f"{ended}; its error is above. {_WRITE}")


def _check(rows: Collection[Row], settings: dict[str, Any], path: Path) -> None:
    """Raise where rows were made with other settings, and warn where with other versions."""
    if changed := [row["settings"] for row in rows if row["settings"] != settings]:
        raise ValueError(
            f"The results in {path} were made with the settings {changed[0]}, this sweep has "
            f"{settings}. Give another path, or the same settings."
        )
    now = tuple(versions().values())
    if others := {tuple(row[name] for name in VERSIONS) for row in rows} - {now}:
        warnings.warn(
            f"{path} has results of other versions {sorted(others)} of {VERSIONS} than this "
            f"process's {now}. Give another path for results of one version only.",
            stacklevel=3,
        )
