"""Sweeps run all combinations once, even after failures."""

from __future__ import annotations

import math
import os
import re
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from optuna.trial import TrialState

from momo_wrap import sweep
from momo_wrap.sweep import running
from momo_wrap.sweep.results_file import Run
from momo_wrap.sweep.storage import Trials
from momo_wrap.sweep.training import DEATHS, versions
from tests.sweep.training import (
    OPTIMIZERS,
    bare,
    draws,
    faulty,
    quadratic,
    threads,
    two_kinds,
)

BARE: dict[str, sweep.OptimizerFactory] = {"SGD": bare}


def test_every_combination_in_processes(tmp_path: Path) -> None:
    rates, path = [0.1, 0.4], tmp_path / "new folder" / "sweep.csv"
    results = sweep.run(quadratic, OPTIMIZERS, rates, range(2), path, processes=2, progress=False)
    found = set(zip(results["optimizer"], results["lr"], results["seed"], strict=True))
    assert found == {(name, lr, seed) for name in OPTIMIZERS for lr in rates for seed in range(2)}
    assert len(results) == 8
    assert set(results["status"]) == {"ok"}
    assert set(results["task"]) == {"quadratic"}
    assert os.getpid() not in set(results["process"])
    assert (results["wrapped"] == (results["optimizer"] == "SGD + MoMo")).all()
    assert set(results["base"]) == {"SGD"}
    assert set(results["torch"]) == {torch.__version__}
    assert (results["score"] == -results["loss"]).all()
    again = sweep.run(quadratic, OPTIMIZERS, rates, range(2), path, processes=0, progress=False)
    assert again.equals(results)
    before = path.with_suffix(".journal").read_bytes()
    assert sweep.load(path).equals(results)  # in the order of the grid, whichever ended first
    assert path.with_suffix(".journal").read_bytes() == before


def test_loss_is_that_of_the_training(tmp_path: Path) -> None:
    results = sweep.run(quadratic, BARE, [0.1], [0], tmp_path / "s.csv", processes=0)
    assert results["loss"][0] == pytest.approx(3 * 0.8**8)  # each step is x <- 0.8 x


def test_failures_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    with pytest.warns(UserWarning, match=r"9 of 11 runs failed, the first with: KeyError"):
        results = sweep.run(faulty, BARE, [1], range(11), path, processes=0, progress=False)
    expected = [
        ("error", r"KeyError: 'two\\nlines, and \"quotes\"'"),
        ("diverged", "loss is nan"),
        ("error", "RuntimeError: two lines"),
        ("diverged", "FloatingPointError: the loss is inf"),
        ("error", r"must return 'loss' or 'score', got \['accuracy'\]"),
        ("error", "Tensor with 2 elements"),
        ("error", "All arrays must be of the same length"),
        ("error", r"\['lr'\] can't be given: there are such columns"),
        ("error", "SystemExit: enough"),
        ("error", "'float' object is not iterable"),
        ("error", "could not convert string to float: 'high'"),
    ]
    for row, (status, message) in zip(results.to_dict("records"), expected, strict=True):
        assert row["status"] == status, row
        assert re.search(message, row["message"]), row
    assert "in faulty\n    raise KeyError" in results["traceback"][0]
    assert results["score"][1] == 0.25
    assert (sweep.load(path)["traceback"] == results["traceback"]).all()


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="1 of 3 runs failed"):
        sweep.run(faulty, BARE, [1], [0, 1, 3], tmp_path / "sweep.csv", processes=0)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "failed=1" in shown


def test_progress_is_reported_when_a_run_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file each time is a line: not at every look."""
    monkeypatch.setattr(running, "_LOOK", 0.12)  # tqdm itself skips updates within 0.1
    path, run = tmp_path / "sweep.csv", Run("quadratic", "SGD", 0.1, 0)
    elsewhere = Trials(path, None)
    claim = elsewhere.claim([run])
    assert claim is not None
    row = {"status": "ok", "loss": 1.0, "score": math.nan, "message": "", "settings": {}}
    row |= {**run._asdict(), **versions(), "results": {}}
    threading.Timer(1.0, elsewhere.finish, (claim.trial, row)).start()
    sweep.run(quadratic, BARE, [0.1], [0], path, processes=0)
    assert capsys.readouterr().err.count("\r") <= 4


def test_run_that_ends_its_process_again_and_again_is_an_error(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "sweep.csv", None)
    for deaths in range(DEATHS):
        claim = trials.claim([Run("quadratic", "SGD", 0.1, 0)])
        assert claim is not None
        assert claim.deaths == deaths
        trials._close(claim.trial, TrialState.FAIL)
    other = trials.claim([Run("quadratic", "SGD", lr, 0) for lr in (0.1, 0.2)])
    assert other is not None
    assert other.run.lr == 0.2  # what kills comes last
    trials._close(other.trial, TrialState.PRUNED)
    with pytest.warns(UserWarning, match="1 of 2 runs failed"):
        results = sweep.run(quadratic, BARE, [0.1, 0.2], [0], trials.path, processes=0)
    assert "Its process died, in 5 of 5 attempts" in results["message"][0]
    assert sweep.forget(trials.path, status="error") == 1
    sweep.run(quadratic, BARE, [0.1, 0.2], [0], trials.path, processes=0)
    assert set(sweep.load(trials.path)["status"]) == {"ok"}


def test_settings_are_kept_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    settings = {"epochs": 3, "size": "small", "rate": 0.1}
    results = sweep.run(quadratic, BARE, [0.1], [0], path, processes=0, settings=settings)
    assert results[list(settings)].to_dict("records") == [settings]
    sweep.run(quadratic, BARE, [0.1], [0], path, processes=0, settings=settings)
    with pytest.raises(
        ValueError, match=r"with the settings {'epochs': 3.*this sweep has {'epochs'"
    ):
        sweep.run(quadratic, BARE, [0.1], [0], path, processes=0, settings={"epochs": 4})


def test_other_versions_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    sweep.run(quadratic, BARE, [0.1], [0], path, processes=0)
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    path.with_suffix(".journal").unlink()
    with pytest.warns(UserWarning, match=r"other versions \[\('0.*', '1.0', '3"):
        sweep.run(quadratic, BARE, [0.1], [0], path, processes=0)


def test_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    results = sweep.run(threads, BARE, [0.1], [0], tmp_path / "s.csv", processes=0, threads=3)
    assert results["threads"][0] == 3
    assert torch.get_num_threads() == before


def test_runs_are_seeded(tmp_path: Path) -> None:
    def without_first(path: Path, rates: list[float]) -> Any:
        results = sweep.run(draws, BARE, rates, [5], path, processes=0)
        return results[results["lr"] == 0.2][["loss", "numpy", "builtin"]].to_numpy().tolist()

    assert without_first(tmp_path / "a.csv", [0.2]) == without_first(tmp_path / "b.csv", [0.1, 0.2])


def test_several_tasks_and_more_rates(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    tasks = {'first, with "quotes"': quadratic, "second": two_kinds}
    sweep.run(tasks, BARE, [0.1], [0], path, processes=0)
    results = sweep.run(tasks, BARE, [0.2], [0], path, processes=0)
    assert list(results["task"]) == list(tasks)
    assert list(results["lr"]) == [0.2, 0.2]
    assert len(sweep.load(path)) == 4


def test_curves_are_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    results = sweep.run(quadratic, OPTIMIZERS, [0.1, 10.0], [0, 1], path, processes=0)
    assert list(results["curve"] != "") == list(results["wrapped"])
    curves = sweep.load_curves(path, seed=0)
    assert list(curves) == ["lr 0.1", "lr 10"]
    assert list(curves["lr 10"]["step"]) == [0, 1, 2, 3, 4]
    assert (curves["lr 10"]["lr"] == 10).all()
    assert (curves["lr 10"]["effective_lr"] < 1).all()
    assert list(sweep.load_curves(path, lr=[0.1])) == ["seed 0", "seed 1"]
    with pytest.raises(ValueError, match="no column 'learning_rate', only"):
        sweep.load_curves(path, learning_rate=0.1)
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / results["curve"].iloc[-1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"lr%2010|lr 10"):
        sweep.load_curves(path)


def test_forgotten_runs_are_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    first = sweep.run(quadratic, OPTIMIZERS, [0.1, 0.2], [0], path, processes=0)
    assert sweep.forget(path, optimizer="SGD", lr=[0.2]) == 1
    for left in (sweep.load(path), pd.read_csv(path)):
        assert sorted(zip(left["optimizer"], left["lr"], strict=True)) == [
            ("SGD", 0.1),
            ("SGD + MoMo", 0.1),
            ("SGD + MoMo", 0.2),
        ]
    assert sweep.forget(path, status="error") == 0
    again = sweep.run(quadratic, OPTIMIZERS, [0.1, 0.2], [0], path, processes=0)
    assert again.drop(columns="seconds").equals(first.drop(columns="seconds"))
    assert (again["seconds"] != first["seconds"]).sum() <= 1
    with pytest.raises(ValueError, match="no column 'method', only"):
        sweep.forget(path, method="SGD")


def test_results_are_taken_from_the_file_alone(tmp_path: Path) -> None:
    """As in a fresh clone, where the file was committed and the journal was not."""
    path, journal = tmp_path / "sweep.csv", tmp_path / "sweep.journal"
    first = sweep.run(quadratic, BARE, [0.1], [0], path, processes=0)
    journal.unlink()
    before = path.read_bytes()
    assert sweep.run(quadratic, BARE, [0.1], [0], path, processes=0).equals(first)
    assert not journal.exists()
    sweep.run(quadratic, BARE, [0.1, 0.2], [0], path, processes=0)
    assert path.read_bytes().startswith(before)
    assert sweep.forget(path, lr=0.1) == 1
    assert list(sweep.load(path)["lr"]) == [0.2]


def test_interrupted_run_is_given_back(tmp_path: Path) -> None:
    """In a notebook, the process of the run that was interrupted lives on."""
    path = tmp_path / "sweep.csv"

    def interrupted(lr: float, _make_optimizer: sweep.OptimizerFactory, _seed: int) -> Any:
        if lr == 0.2 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise KeyboardInterrupt
        return {"loss": lr}

    with pytest.raises(KeyboardInterrupt):
        sweep.run(interrupted, BARE, [0.1, 0.2], [0], path, processes=0)
    results = sweep.run(interrupted, BARE, [0.1, 0.2], [0], path, processes=0)
    assert list(results["loss"]) == [0.1, 0.2]
