"""Where the runs of a sweep are kept: Optuna's storage, which any number of processes share.

A process that is about to train a run creates a trial, with its own name in it, in one entry of the
storage. Of several that do so at once, the one whose trial has the lowest number trains. Where it
dies, the trial is closed without a result, and the next trial of the run names it under `after`: so
the trials of a run are one chain, whoever adds to it, and the last one counts.
"""

from __future__ import annotations

import math
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, _CachedStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, ProgrammingError

from momo_wrap.sweep.grid import Run
from momo_wrap.sweep.results_file import Row, empty_row, from_text, to_text

if sys.platform != "win32":
    import fcntl

BEAT = 30.0  # seconds between the signs of life of a process that trains
SILENCE = 150.0  # after so many without one, a process on another machine is taken for dead
DEATHS = 5  # a run that has cost so many processes is an error
_AMONG = 8  # of so many next runs one is drawn, so that processes seldom want the same
_RATES = FloatDistribution(1e-100, 1e100, log=True)


class Claim(NamedTuple):
    """A run that this process trains, and its trial."""

    run: Run
    trial: int


class Storage:
    """The trials of a sweep.

    Args:
        where: The path of a journal, or the URL of a database.
        name: The name of the study there, which is made if there is none.
    """

    def __init__(self, where: str, name: str) -> None:
        own = psutil.Process()
        self._owner = {"host": _host(), "pid": own.pid, "started": own.create_time()}
        self._opened = opened = _open(where)
        self._storage = _CachedStorage(opened) if isinstance(opened, RDBStorage) else opened
        self._study = _study(self._storage, name)
        self._rows: dict[int, Row] = {}
        self._beats: dict[int, tuple[Any, float]] = {}
        self._chance = random.Random()  # not the one that runs are seeded by

    def close(self) -> None:
        """Close the connections to a database."""
        self._opened.remove_session()
        if isinstance(self._opened, RDBStorage):
            self._opened.engine.dispose()

    def agree(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the sweep, which are those given if it has none yet."""
        if "settings" not in self._storage.get_study_user_attrs(self._study):
            self._storage.set_study_user_attr(self._study, "settings", settings)
        kept: dict[str, Any] = self._storage.get_study_user_attrs(self._study)["settings"]
        return kept

    def results(self) -> dict[Run, Row]:
        """Return the rows of the runs that have ended."""
        ended = {run: trial for run, trial in self._latest().items() if _has_result(trial)}
        for trial in ended.values():
            if trial.number not in self._rows:
                self._rows[trial.number] = from_text(trial.user_attrs["row"])
        return {run: self._rows[trial.number] for run, trial in ended.items()}

    def open_runs(self, runs: Iterable[Run]) -> list[Run]:
        """Return those of the runs that have no result and that nobody trains."""
        latest = self._latest()
        return [run for run in runs if _is_open(latest.get(run))]

    def claim(self, runs: Iterable[Run]) -> Claim | None:
        """Take one of the runs that have no result and that nobody trains; None: there is none."""
        latest = self._latest()
        while rest := [run for run in runs if _is_open(latest.get(run))]:
            rest.sort(key=lambda run: _deaths(latest.get(run)))  # what kills comes last
            run = self._chance.choice(rest[:_AMONG])
            trial = self._add(run, latest.get(run), TrialState.RUNNING)
            latest = self._latest()
            if latest[run]._trial_id == trial:
                return Claim(run, trial)
            self._close(trial, TrialState.PRUNED)  # another process was first
        return None

    @contextmanager
    def training(self, claim: Claim) -> Iterator[None]:
        """Give signs of life while a run is trained; give it back if that is interrupted."""
        over = threading.Event()

        def beat() -> None:
            for number in count(1):
                if over.wait(BEAT):
                    return
                with suppress(UpdateFinishedTrialError, StorageInternalError):
                    self._storage.set_trial_user_attr(claim.trial, "beat", number)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._close(claim.trial, TrialState.PRUNED)
            raise
        finally:
            over.set()
            thread.join()

    def finish(self, claim: Claim, row: Row) -> None:
        """Keep the row of a run, unless the run was given to another process meanwhile."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial, "row", to_text(row))
            self._settle(claim.trial, row)

    def release(self) -> None:
        """Let runs be begun again whose process has died."""
        for run, trial in self._latest().items():
            if trial.state != TrialState.RUNNING or not self._is_dead(trial):
                continue
            if _has_result(trial):  # it died between its last two entries
                self._settle(trial._trial_id, from_text(trial.user_attrs["row"]))
            elif trial.user_attrs["deaths"] + 1 < DEATHS:
                self._close(trial._trial_id, TrialState.FAIL)
            else:
                settings = self._storage.get_study_user_attrs(self._study)["settings"]
                message = f"Its process died, in {DEATHS} of {DEATHS} attempts."
                failed = {"status": "error", "message": message, "settings": settings}
                self.finish(Claim(run, trial._trial_id), {**empty_row(run), **failed})

    def has_claimed(self, pid: int) -> bool:
        """Tell whether a process of this machine has ever taken a run."""
        own = {"host": self._owner["host"], "pid": pid}
        return any(own.items() <= trial.user_attrs["owner"].items() for trial in self._trials())

    def forget(self, runs: Iterable[Run]) -> None:
        """Let runs be begun again that have ended."""
        latest = self._latest()
        for run in runs:
            if not _is_open(latest.get(run)):
                self._add(run, latest[run], TrialState.PRUNED)

    def _trials(self) -> list[FrozenTrial]:
        """Return the trials of runs; somebody may have added others to the study."""
        trials = self._storage.get_all_trials(self._study, deepcopy=False)
        return [trial for trial in trials if "after" in trial.user_attrs]

    def _latest(self) -> dict[Run, FrozenTrial]:
        """Return the trial of each run that counts: the end of its chain."""
        latest: dict[Run, FrozenTrial] = {}
        for trial in self._trials():
            about = trial.user_attrs
            run = Run(about["task"], about["optimizer"], about["lr"], about["seed"])
            if about["after"] == (latest[run].number if run in latest else -1):
                latest[run] = trial
        return latest

    def _add(self, run: Run, last: FrozenTrial | None, state: TrialState) -> int:
        after = -1 if last is None else last.number
        about = {"after": after, "deaths": _deaths(last), "owner": self._owner, **run._asdict()}
        lr: dict[str, Any] = {"params": {"lr": run.lr}, "distributions": {"lr": _RATES}}
        template = create_trial(state=state, user_attrs=about, **lr)
        return self._storage.create_new_trial(self._study, template)

    def _settle(self, trial: int, row: Row) -> None:
        """Close a trial that has a row; Optuna minimizes, so that a score is negated."""
        value = -row["score"] if math.isnan(row["loss"]) else row["loss"]
        if row["status"] == "ok":
            self._close(trial, TrialState.COMPLETE, [value])
        else:
            self._close(trial, TrialState.FAIL)

    def _close(self, trial: int, state: TrialState, values: list[float] | None = None) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial, state, values)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Tell whether the process of a trial is gone, or has been silent for long."""
        owner = trial.user_attrs["owner"]
        if owner["host"] == self._owner["host"]:
            return not _lives(owner["pid"], owner["started"])
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        last, since = self._beats.setdefault(trial.number, (beat, now))
        if beat != last:
            self._beats[trial.number] = (beat, now)
        return beat == last and now - since > SILENCE


class _Lock:
    """Lets one process at a time write to a journal, and frees it of what a killed one left.

    Optuna's own locks are files, which outlive a killed process by half a minute; this one is the
    kernel's. An entry without its end would make the journal unreadable once another follows it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def acquire(self) -> bool:
        self._file = open(self._path, "rb+")  # noqa: SIM115 - until it is released
        fcntl.flock(self._file, fcntl.LOCK_EX)
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - 1))
        if self._file.read() not in (b"", b"\n"):
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._file.close()


def _open(where: str) -> JournalStorage | RDBStorage:
    if "://" in where:
        return _database(where)
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    lock: Any = JournalFileOpenLock(where) if sys.platform == "win32" else _Lock(where)
    return JournalStorage(JournalFileBackend(where, lock))


def _database(url: str, attempts: int = 5) -> RDBStorage:
    try:
        # A connection that was idle during a long run may be gone: look before it is used.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (IntegrityError, ProgrammingError):  # another process makes the tables just now
        if attempts == 1:
            raise
    time.sleep(0.5)
    return _database(url, attempts - 1)


def _study(storage: BaseStorage, name: str) -> int:
    """Return the number of a study, which is made if there is none, without the notice of it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return storage.create_new_study([StudyDirection.MINIMIZE], name)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _has_result(trial: FrozenTrial) -> bool:
    return "row" in trial.user_attrs


def _is_open(trial: FrozenTrial | None) -> bool:
    """Tell whether a run whose last trial this is must be begun, or begun again."""
    return trial is None or (trial.state.is_finished() and not _has_result(trial))


def _deaths(last: FrozenTrial | None) -> int:
    """Return how many processes a run has cost, whose last trial this is."""
    if last is None:
        return 0
    died = last.state == TrialState.FAIL and not _has_result(last)
    return int(last.user_attrs["deaths"]) + died


def _host() -> str:
    """Return the name of what numbers processes: the machine, or a container on it."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(space)}" if space.exists() else platform.node()


def _lives(pid: int, started: float) -> bool:
    """Tell whether a process of this machine lives, and no other that has got its number."""
    try:
        process = psutil.Process(pid)
        is_over = process.status() == psutil.STATUS_ZOMBIE
        return not is_over and abs(process.create_time() - started) < 5.0
    except psutil.NoSuchProcess:
        return False
