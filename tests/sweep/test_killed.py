"""Sweeps that are killed, and sweeps that share the work: every run is in the table once."""

from __future__ import annotations

import math
import platform
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from momo_wrap import sweep
from momo_wrap.sweep import storage
from momo_wrap.sweep.results_file import Row, Run
from momo_wrap.sweep.storage import Trials
from tests.sweep import shared


def kill_at_random(path: Path, kills: int, processes: int, chance: random.Random) -> Counter[str]:
    """Kill processes that train, or the sweep's own, which is started again but for the last."""
    killed: Counter[str] = Counter()
    own = shared.start(path, processes=processes)
    while killed.total() < kills:
        before = len(shared.begun())
        while len(shared.begun()) == before:
            assert own.poll() is None, f"The sweep ended before {kills} kills, after {killed}."
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.4))
        victim = psutil.Process(own.pid)
        if killed.total() < kills - 1 and (not killed or chance.random() < 0.6):
            last = {line.split()[0] for line in shared.begun()}
            victim = chance.choice([w for w in victim.children() if str(w.pid) in last] or [victim])
        victim.kill()
        killed["sweep" if victim.pid == own.pid else "process"] += 1
        if victim.pid == own.pid:
            assert own.wait() == -signal.SIGKILL
            own = own if killed.total() == kills else shared.start(path, processes=processes)
    return killed


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("kills", "processes"), [(2, 1), pytest.param(20, 2, marks=pytest.mark.slow)]
)
def test_every_run_is_there_once_after_kills(
    kills: int, processes: int, tmp_path: Path, undisturbed: dict[Run, float]
) -> None:
    path = tmp_path / "sweep.csv"
    killed = kill_at_random(path, kills, processes, random.Random(kills))
    assert killed["process"] > 0
    assert killed["sweep"] > 0
    assert len(sweep.load(path)) < shared.RUNS
    assert shared.losses(shared.run(path)) == undisturbed
    assert shared.losses(sweep.load(path)) == undisturbed
    path.with_suffix(".journal").rename(tmp_path / "away")
    assert shared.losses(sweep.load(path)) == undisturbed
    # Only the interrupted runs have started again.
    again = len(shared.begun()) - shared.RUNS
    assert again <= killed["process"] + processes * killed["sweep"]


@pytest.mark.slow
@pytest.mark.usefixtures("log")
def test_two_sweeps_share_the_work(tmp_path: Path, undisturbed: dict[Run, float]) -> None:
    paths = [tmp_path / name / "sweep.csv" for name in ("one", "other")]
    both = [shared.start(path, tmp_path / "shared.journal", 0, 0.001, 2) for path in paths]
    assert [own.wait() for own in both] == [0, 0]
    for path in paths:
        assert not path.with_suffix(".journal").exists()
        assert shared.losses(sweep.load(path)) == undisturbed
    assert len(shared.begun()) == shared.RUNS
    assert len({line.split()[0] for line in shared.begun()}) == 2


RUN = Run("task", "SGD", 0.1, 0)


def ok(loss: float) -> Row:
    return {"status": "ok", "loss": loss, "score": math.nan}


def test_one_of_two_that_claim_at_once_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the search for open runs and the trial, another process has started the run."""
    first, second = (Trials(tmp_path / "s.csv", None) for _ in range(2))
    create = second._storage.create_new_trial

    def create_later(*arguments: object) -> int:
        assert first.claim([RUN]) is not None
        return create(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(second._storage, "create_new_trial", create_later)
    assert second.claim([RUN]) is None
    assert second.open([RUN]) == []


def test_silent_processes_of_other_machines_are_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SILENCE", 0.4)
    monkeypatch.setattr(storage, "BEAT", 0.1)
    here = Trials(tmp_path / "s.csv", None)
    there = Trials(tmp_path / "s.csv", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "node", lambda: "elsewhere")
        claim = there.claim([RUN])
    assert claim is not None

    def is_open_after(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not here.open([RUN]):
            here.release()
            time.sleep(0.02)
        return here.open([RUN]) == [RUN]

    with there.training(claim):
        assert not is_open_after(1.0)
    assert is_open_after(10.0)
    # It was alive after all, and too late.
    there.finish(claim.trial, ok(1.0))
    assert here.results() == {}
    again = here.claim([RUN])
    assert again is not None
    here.finish(again.trial, ok(2.0))
    assert there.results()[RUN]["loss"] == 2.0


def test_result_without_the_end_of_its_trial_counts(tmp_path: Path) -> None:
    """The process was killed between the two."""
    trials = Trials(tmp_path / "s.csv", None)
    claim = trials.claim([RUN])
    assert claim is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "_close", lambda *_: None)
        trials.finish(claim.trial, ok(1.0))
    assert trials.results()[RUN]["loss"] == 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_lives", lambda *_: False)
        trials.release()
    assert trials.open([RUN]) == []
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    (trial,) = optuna.load_study(study_name="s", storage=journal).trials
    assert (trial.state.name, trial.value, trial.params) == ("COMPLETE", 1.0, {"lr": 0.1})


def test_other_trials_of_the_study_are_left_alone(tmp_path: Path) -> None:
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    study = optuna.create_study(study_name="s", storage=journal)
    study.enqueue_trial({"lr": 0.1})
    trials = Trials(tmp_path / "s.csv", None)
    claim = trials.claim([RUN])
    assert claim is not None
    trials.finish(claim.trial, ok(1.0))
    assert list(trials.results()) == [RUN]
    assert [trial.state.name for trial in study.trials] == ["WAITING", "COMPLETE"]


def test_journal_cut_at_every_byte(tmp_path: Path) -> None:
    """For any incomplete entry of a killed process, earlier entries count and others follow."""
    path = tmp_path / "s.journal"
    trials = Trials(tmp_path / "s.csv", None)
    sizes = []
    for seed in range(2):
        claim = trials.claim([RUN._replace(seed=seed)])
        assert claim is not None
        trials.finish(claim.trial, ok(1.0))
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    third = RUN._replace(seed=2)
    for size in range(sizes[0], sizes[1] + 1, 13):
        path.write_bytes(whole[:size])
        claim = Trials(tmp_path / "s.csv", None).claim([third])
        assert claim is not None
        Trials(tmp_path / "s.csv", None).finish(claim.trial, ok(3.0))
        found = Trials(tmp_path / "s.csv", None).results()
        assert found[RUN]["loss"] == 1.0
        assert found[third]["loss"] == 3.0


def test_a_number_that_another_process_has_got_is_not_alive() -> None:
    own = psutil.Process()
    assert storage._lives(own.pid, own.create_time())
    assert not storage._lives(own.pid, own.create_time() - 100.0)
    with psutil.Popen([sys.executable, "-c", ""]) as child:
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not storage._lives(child.pid, child.create_time())
    assert not storage._lives(child.pid, own.create_time())
