"""The trials of a sweep, in Optuna's storage, which any number of processes share.

A process that is about to train a run creates a trial with its own name in it, in one entry of the
storage. Of several that do so at once, the one whose trial has the lowest number trains.
"""

from __future__ import annotations

import math
import os
import platform
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import optuna
import psutil
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, ProgrammingError

from momo_wrap.sweep.results_file import Row, Run, read

BEAT = 30.0  # seconds between the signs of life of a process that trains
SILENCE = 150.0  # after so many without one, a process on another machine is taken for dead
_RATES = FloatDistribution(1e-100, 1e100, log=True)


class Claim(NamedTuple):
    """A run that this process trains, its trial, and how many processes it has cost so far."""

    run: Run
    trial: int
    deaths: int


class Trials:
    """The trials of a sweep: in a journal or a database, and in the CSV file of the results."""

    def __init__(self, path: str | PathLike[str], storage: str | PathLike[str] | None) -> None:
        self.path = Path(path).absolute()  # a train function may change the directory
        where = str(storage or self.path.with_suffix(".journal"))
        self.where = where if "://" in where else str(Path(where).absolute())
        self._seen: dict[tuple[int, Any], float] = {}

    @cached_property
    def _storage(self) -> BaseStorage:
        return _open(self.where)

    @cached_property
    def _study(self) -> int:
        name = self.path.stem
        try:
            return self._storage.get_study_id_from_name(name)
        except KeyError:  # there is none, unless another process makes it just now
            with suppress(DuplicatedStudyError):
                self._storage.create_new_study([StudyDirection.MINIMIZE], name)
            return self._storage.get_study_id_from_name(name)

    def exist(self) -> bool:
        """Tell whether there is a storage already."""
        return "://" in self.where or Path(self.where).exists()

    def rows(self, order: Iterable[Run] = ()) -> dict[Run, Row]:
        """Return the rows of all finished runs: first the rows of the file, in order."""
        in_file = read(self.path)
        rows = in_file | (self.results() if self.exist() else {})
        return {run: rows[run] for run in dict.fromkeys([*in_file, *order, *rows]) if run in rows}

    def results(self) -> dict[Run, Row]:
        """Return the rows of the runs that have ended, of the storage alone."""
        about = {run: trial.user_attrs for run, trial in self._counting()[0].items()}
        return {run: own["result"] for run, own in about.items() if "result" in own}

    def open(self, runs: Iterable[Run]) -> list[Run]:
        """Return the runs without a result that no process trains."""
        trials = self._counting()[0]
        return [run for run in runs if run not in trials]

    def claim(self, runs: Iterable[Run]) -> Claim | None:
        """Take a run without a result that no process trains; None: there is none."""
        while True:
            trials, deaths = self._counting()
            rest = [run for run in runs if run not in trials]
            if not rest:
                return None
            fewest = min(deaths[run] for run in rest)  # what kills comes last
            # One of several, so that processes seldom want the same; `random` itself is seeded.
            run = random.SystemRandom().choice([r for r in rest if deaths[r] == fewest][:8])
            trial = self._add(run, TrialState.RUNNING)
            first = self._counting()[0].get(run)
            if first is not None and first._trial_id == trial:
                return Claim(run, trial, deaths[run])
            self._close(trial, TrialState.PRUNED)  # another process was first

    @contextmanager
    def training(self, claim: Claim) -> Iterator[None]:
        """Give signs of life while a run is trained; give it back if that is interrupted."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(claim.trial, over), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._close(claim.trial, TrialState.PRUNED)
            raise
        finally:
            over.set()
            thread.join()

    def finish(self, trial: int, row: Row) -> None:
        """Keep a row, unless its run was given to another process; Optuna minimizes its value."""
        value = -row["score"] if math.isnan(row["loss"]) else row["loss"]
        end = (TrialState.COMPLETE, [value]) if row["status"] == "ok" else (TrialState.FAIL, None)
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial, "result", row)
            self._close(trial, *end)

    def release(self) -> None:
        """Close the trials whose process has died, so that their runs are begun again."""
        for trial in self._storage.get_all_trials(self._study, deepcopy=False):
            about = trial.user_attrs
            if trial.state == TrialState.RUNNING and "owner" in about and self._is_dead(trial):
                if "result" in about:  # it died between its last two entries
                    self.finish(trial._trial_id, about["result"])
                else:
                    self._close(trial._trial_id, TrialState.FAIL)

    def forget(self, runs: Iterable[Run]) -> None:
        """Let trials no longer count: a closed trial without a process marks where they end."""
        for run in runs:
            self._add(run, TrialState.PRUNED, owner=None)

    def _counting(self) -> tuple[dict[Run, FrozenTrial], Counter[Run]]:
        """Return the first trial of each run that has a process or a row, and how many died."""
        trials: dict[Run, FrozenTrial] = {}
        deaths: Counter[Run] = Counter()
        for trial in self._storage.get_all_trials(self._study, deepcopy=False):
            about = trial.user_attrs
            if "owner" not in about:  # somebody may have added others to the study
                continue
            run = Run(*(about[name] for name in Run._fields))
            if about["owner"] is None:
                trials.pop(run, None)
                del deaths[run]
            elif "result" in about or not trial.state.is_finished():
                trials.setdefault(run, trial)
            else:
                deaths[run] += trial.state == TrialState.FAIL
        return trials, deaths

    def _add(self, run: Run, state: TrialState, **about: Any) -> int:
        about = {**run._asdict(), "owner": _owner(), **about}
        lr: Any = {"params": {"lr": run.lr}, "distributions": {"lr": _RATES}}
        trial = create_trial(state=state, user_attrs=about, **lr)
        return self._storage.create_new_trial(self._study, trial)

    def _close(self, trial: int, state: TrialState, values: list[float] | None = None) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial, state, values)

    def _beat(self, trial: int, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with suppress(UpdateFinishedTrialError, StorageInternalError):
                self._storage.set_trial_user_attr(trial, "beat", time.time())

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Tell whether the process of a trial is gone, or has been silent for long."""
        host, pid, started = trial.user_attrs["owner"]
        if host == _owner()[0]:
            return not _lives(pid, started)
        sign, now = (trial.number, trial.user_attrs.get("beat")), time.monotonic()
        return now - self._seen.setdefault(sign, now) > SILENCE


class _Journal(JournalFileBackend):
    """A journal that the kernel locks, and that is freed of what a killed process has left.

    Optuna's own lock is a file that outlives a killed process by 30 seconds, and an entry without
    its end makes the journal unreadable once another follows.
    """

    def __init__(self, path: str) -> None:
        self._kernel_lock = cast("Any", FileLock(f"{path}.lock"))
        super().__init__(path, self._kernel_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._kernel_lock.acquire(poll_interval=0.002), open(self._file_path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)


def _open(where: str, attempts: int = 5) -> BaseStorage:
    if "://" not in where:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(_Journal(where))
    try:
        # A connection that was idle during a long run may be gone: look before it is used.
        database = RDBStorage(where, {"pool_pre_ping": True})
        weakref.finalize(database, database.engine.dispose)
        return optuna.storages.get_storage(database)
    except (IntegrityError, ProgrammingError):  # another process makes the tables just now
        if attempts == 1:
            raise
    time.sleep(0.5)
    return _open(where, attempts - 1)


def _owner() -> tuple[str, int, float]:
    """Return what tells this process from others: where it is numbered, its number, its start."""
    space, own = Path("/proc/self/ns/pid"), psutil.Process()  # containers number by themselves
    host = f"{platform.node()} {os.readlink(space) if space.exists() else ''}"
    return host, own.pid, own.create_time()


def _lives(pid: int, started: float) -> bool:
    """Tell whether a process of this machine lives, and no other that has got its number."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        is_over = process.status() == psutil.STATUS_ZOMBIE
        return not is_over and abs(process.create_time() - started) < 5.0
    return False
