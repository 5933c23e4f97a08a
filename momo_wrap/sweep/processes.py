"""Processes that train the runs of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from momo_wrap.sweep.grid import Functions, Run
from momo_wrap.sweep.storage import Storage
from momo_wrap.sweep.training import execute

_LOOK = 0.3  # seconds between two looks at what has ended
_LOST = 10  # so many processes may be killed before their first run


class Work(NamedTuple):
    """What the processes of a sweep are given; `where` and `name` are those of its storage."""

    runs: list[Run]
    functions: Functions
    where: str
    name: str
    path: Path
    threads: int
    settings: dict[str, Any]


def train_here(work: Work, storage: Storage, look: Callable[[], int]) -> None:
    """Train runs in this process until `look` finds none without a result, of others neither."""
    while look():
        storage.release()
        _train(work, storage, look)
        if look():
            time.sleep(_LOOK)


def train_in_processes(
    work: Work, storage: Storage, processes: int, look: Callable[[], int]
) -> None:
    """Train runs in spawned processes, which end with this one; see `train_here`."""
    context = multiprocessing.get_context("spawn")
    workers: list[Any] = []
    lost = 0
    try:
        while look():
            ended = [worker for worker in workers if worker.exitcode is not None]
            storage.release()
            for worker in ended:
                workers.remove(worker)
                if worker.exitcode and not storage.has_claimed(worker.pid):
                    lost += 1
                    _check_loss(worker.exitcode, lost)
            for _ in range(min(len(storage.open_runs(work.runs)), processes - len(workers))):
                # Not daemonic: a train function may start processes, such as a DataLoader's.
                workers.append(context.Process(target=_serve, args=(work,)))
                workers[-1].start()
            wait([worker.sentinel for worker in workers], _LOOK) if workers else time.sleep(_LOOK)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _train(work: Work, storage: Storage, look: Callable[[], object]) -> None:
    """Train runs as long as there are some that nobody trains; look after each."""
    before = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        while claim := storage.claim(work.runs):
            with storage.training(claim):
                row = execute(claim.run, work.functions, work.path, work.settings)
            storage.finish(claim, row)
            look()
    finally:
        torch.set_num_threads(before)


def _serve(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep's own process answers to it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with closing(Storage(work.where, work.name)) as storage:
        _train(work, storage, lambda: None)


def _end_with_parent() -> None:
    """End at once when the sweep is killed, rather than train on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _check_loss(code: int, lost: int) -> None:
    if code > 0 or lost == _LOST:
        raise RuntimeError(
            f"A process of the sweep ended with exit code {code} before its first run; its error "
            "is above. The functions must be at the top level of a module or script that can be "
            'imported, and a script must call run under `if __name__ == "__main__":`. From a '
            "notebook, or to find other errors, run with processes=0."
        )
