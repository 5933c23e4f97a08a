"""Runs in several processes, of which one that dies costs its own run and no other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from momo_wrap.sweep.grid import Functions, Run
from momo_wrap.sweep.results_file import Row
from momo_wrap.sweep.training import empty_row, execute, one_line


class Work(NamedTuple):
    """What the processes of a sweep are given.

    Attributes:
        functions: The pickled functions.
        results_path: The file of results.
        threads: The number of threads of each process.
    """

    functions: bytes
    results_path: Path
    threads: int


def default_processes(threads: int) -> int:
    """Return how many processes fill the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)) // threads)
    return max(1, (os.cpu_count() or 1) // threads)


def in_this_process(
    runs: Iterable[Run], functions: Functions, results_path: Path, threads: int
) -> Iterator[Row]:
    """Execute runs one after another.

    Args:
        runs: The runs.
        functions: The tasks and optimizers.
        results_path: The file of results.
        threads: The number of threads.

    Yields:
        The row of each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for run in runs:
            yield execute(run, functions, results_path)
    finally:
        torch.set_num_threads(before)


def in_processes(runs: Iterable[Run], work: Work, processes: int) -> Iterator[Row]:
    """Execute runs in spawned processes, which end with this one.

    Args:
        runs: The runs.
        work: What the processes are given.
        processes: The number of processes.

    Yields:
        The row of each, in the order in which they end.

    Raises:
        RuntimeError: A process can't be started, or can't load the functions.
    """
    waiting = deque(runs)
    workers = [_Worker(work) for _ in range(min(processes, len(waiting)))]
    try:
        for worker in workers:
            worker.begin(waiting.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.run is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                row = worker.answer()
                if row is None:  # it is ready, and has begun
                    continue
                if not worker.process.is_alive() and waiting:
                    workers.remove(worker)
                    worker = _Worker(work)
                    workers.append(worker)
                if waiting:
                    worker.begin(waiting.popleft())
                yield row
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that executes one run after another."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        # Not daemonic: a train function may start processes of its own, such as a DataLoader's.
        self.process = context.Process(target=_serve, args=(other_end,))
        self.process.start()
        other_end.close()  # or the end of the process would not end the connection
        self._is_ready = False
        self._work = work
        self.run: Run | None = None

    def begin(self, run: Run) -> None:
        self.run = run
        try:
            if not self._is_ready:
                self.connection.send(self._work)
            self.connection.send(run)
        except OSError:
            pass  # it has died; `answer` tells

    def answer(self) -> Row | None:
        """Return the row of the run, or None where the process tells that it is ready."""
        assert self.run is not None
        try:
            received = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            received = self._epitaph(self.run)
        if not self._is_ready:
            if received is not None:
                raise RuntimeError(received)
            self._is_ready = True
            return None
        self.run = None
        row: Row = received
        return row

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _epitaph(self, run: Run) -> Row | str:
        code = self.process.exitcode
        if not self._is_ready:
            return (
                f"A process of the sweep ended with exit code {code} before its first run; its "
                'error is above. A script must call run under `if __name__ == "__main__":`, '
                "since the processes import it. To find other errors, run with processes=0."
            )
        row = empty_row(run)
        return {**row, "status": "error", "message": f"The process ended with exit code {code}."}


def _serve(connection: Connection) -> None:
    """Execute runs until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep's own process answers to it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work: Work = connection.recv()
        torch.set_num_threads(work.threads)
        try:
            functions: Functions = pickle.loads(work.functions)
        except Exception as error:  # whatever the import of the user's module raises
            connection.send(_unusable(error))
            return
        connection.send(None)
        while True:
            connection.send(execute(connection.recv(), functions, work.results_path))
    except (EOFError, OSError):
        return  # the sweep is over


def _end_with_parent() -> None:
    """End at once when the sweep is killed, rather than train on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _unusable(error: Exception) -> str:
    reason = one_line(f"{type(error).__name__}: {error}")
    return (
        f"A process of the sweep can't load the functions: {reason}. They must be at the top level "
        "of a module or script that can be imported; from a notebook, put them into a file, or "
        "run with processes=0."
    )
