"""The recorder keeps every step, and visits the host once in so many."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from momo_wrap import MoMo, MoMoWrapper, Recorder
from momo_wrap.research import PerGroup
from tests.problems import Problem
from tests.test_host_visits import VISITS, HostVisits

STEPS = 7


def wrapped(problem: Problem, **settings: Any) -> MoMoWrapper:
    return MoMoWrapper(AdamW(problem.params, lr=1.0), **settings)


def train(
    optimizer: MoMoWrapper, problem: Problem, recorder: Recorder, steps: int = STEPS
) -> list[tuple[float, ...]]:
    """Train, and return the records, read step by step."""
    seen: list[tuple[float, ...]] = []
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
        recorder.record()
        last = optimizer.last_step
        assert last is not None
        seen.append((float(last.theta), float(last.loss), float(optimizer.effective_lrs()[0])))
    return seen


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_file_has_every_step(tmp_path: Path, every: int) -> None:
    problem, path = Problem(), tmp_path / "steps.csv"
    optimizer = wrapped(problem)
    with Recorder(optimizer, every=every, path=path) as recorder:
        seen = train(optimizer, problem, recorder)
        assert len(read(path)) == STEPS // every * every
    rows = read(path)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    found = [tuple(float(row[name]) for name in ("theta", "loss", "effective_lr")) for row in rows]
    assert found == seen
    assert {row["lr"] for row in rows} == {"1.0"}
    assert any(row["theta"] != "1.0" for row in rows)


def test_curve_in_memory_is_that_of_the_file(tmp_path: Path) -> None:
    curves = []
    for path in (None, tmp_path / "steps.csv"):
        problem = Problem()
        optimizer = wrapped(problem)
        recorder = Recorder(optimizer, every=3, path=path)
        assert recorder.curve() == {}
        train(optimizer, problem, recorder)
        curves.append(recorder.curve())
    assert curves[0] == curves[1]
    assert len(curves[0]["theta"]) == STEPS


def test_no_host_visit_between_flushes() -> None:
    problem = Problem()
    optimizer = wrapped(problem)
    recorder = Recorder(optimizer, every=STEPS + 1)
    counts: Counter[str] = Counter()
    for _ in range(STEPS):
        optimizer.step(loss=problem.gradients())
        with HostVisits() as mode:
            recorder.record()
        counts += mode.seen
    assert not counts


def test_no_visit_where_none_is_possible() -> None:
    """Tensors on the meta device have no values, so that only the flush raises."""
    param = torch.empty(3, device="meta", requires_grad=True)
    param.grad = torch.empty_like(param)
    lr = torch.tensor(0.1)  # on the CPU: copied to the device, as the wrapper does
    optimizer = MoMoWrapper(AdamW([param], lr=lr, foreach=False, capturable=False))
    recorder = Recorder(optimizer)
    for _ in range(3):
        optimizer.step(loss=torch.empty((), device="meta"))
        recorder.record()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        recorder.flush()


def test_one_transfer_in_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    optimizer = wrapped(problem)
    recorder = Recorder(optimizer, every=5)
    transfers = []
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        transfers.append(tensor.shape)
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", counted)
    for _ in range(10):
        optimizer.step(loss=problem.gradients())
        with HostVisits() as mode:
            recorder.record()
        assert not {name for name in mode.seen if name in VISITS}
    assert len(transfers) == 2


def test_values_are_copied() -> None:
    """Schedulers write into learning rates, CUDA graphs into what a step returns."""
    problem = Problem()
    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer = MoMoWrapper(SGD(problem.params, lr=lr))
    recorder = Recorder(optimizer)
    for value in (0.5, 0.25):
        lr.fill_(value)
        optimizer.step(loss=problem.gradients())
        recorder.record()
    assert optimizer.last_step is not None
    theta = float(optimizer.last_step.theta)
    optimizer.last_step.theta.fill_(-1.0)
    assert recorder.curve()["lr"] == [0.5, 0.25]
    assert recorder.curve()["theta"][-1] == theta


def test_groups_are_named() -> None:
    problem = Problem()
    groups: list[dict[str, Any]] = [
        {"params": problem.params[:2]},
        {"params": problem.params[2:], "lr": torch.tensor(0.5), "name": "head"},
    ]
    optimizer = MoMoWrapper(SGD(groups, lr=0.25, foreach=False))
    with Recorder(optimizer) as recorder:
        train(optimizer, problem, recorder, steps=2)
        curve = recorder.curve()
    assert list(curve)[-4:] == ["effective_lr/pg1", "effective_lr/head", "lr/pg1", "lr/head"]
    assert curve["lr/pg1"] == [0.25, 0.25]
    assert curve["lr/head"] == [0.5, 0.5]
    ratio = curve["effective_lr/head"][1] / curve["effective_lr/pg1"][1]
    assert ratio == pytest.approx(2.0)


def two_thetas() -> tuple[Problem, MoMoWrapper]:
    problem = Problem()
    halves: list[dict[str, Any]] = [
        {"params": problem.params[:2]},
        {"params": problem.params[2:], "name": "head"},
    ]
    return problem, MoMoWrapper(SGD(halves, lr=5.0), PerGroup())


def test_each_group_has_its_theta(tmp_path: Path) -> None:
    problem, optimizer = two_thetas()
    thetas = []
    with Recorder(optimizer, every=2, path=tmp_path / "steps.csv") as recorder:
        for _ in range(3):
            optimizer.step(loss=problem.gradients())
            recorder.record()
            assert optimizer.last_step is not None
            thetas.append(optimizer.last_step.theta.tolist())
        curve = recorder.curve()
    assert list(curve)[:6] == [
        *("step", "theta/pg1", "theta/head", "theta_uncapped/pg1", "theta_uncapped/head"),
        "value_after_decay",
    ]
    assert list(zip(curve["theta/pg1"], curve["theta/head"], strict=True)) == list(
        map(tuple, thetas)
    )
    assert any(first != second for first, second in thetas)
    assert len(curve["lr/head"]) == 3


def test_a_rule_of_another_kind_has_no_columns() -> None:
    problem, optimizer = two_thetas()
    recorder = Recorder(optimizer)
    optimizer.step(loss=problem.gradients())
    recorder.record()
    optimizer.rule = MoMo()
    optimizer.step(loss=problem.gradients())
    message = r"values per group were \['theta', 'theta_uncapped'\], and with the new .* \[\]"
    with pytest.raises(ValueError, match=message):
        recorder.record()


def test_skipped_steps_have_no_row() -> None:
    problem = Problem()
    optimizer = wrapped(problem, nonfinite="skip")
    recorder = Recorder(optimizer)
    recorder.record()  # before the first step
    for factor in (float("nan"), 1.0, float("nan"), 1.0):
        optimizer.step(loss=problem.gradients() * factor)
        recorder.record()
    assert recorder.curve()["step"] == [2, 4]


class Writer:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))


def test_writer_gets_every_step() -> None:
    problem, writer = Problem(), Writer()
    optimizer = wrapped(problem)
    with Recorder(optimizer, every=2, tensorboard=writer) as recorder:
        seen = train(optimizer, problem, recorder, steps=3)
    thetas = [(value, step) for tag, value, step in writer.scalars if tag == "momo/theta"]
    assert thetas == [(theta, step) for step, (theta, *_) in enumerate(seen)]


def test_tensorboard_directory(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    problem = Problem()
    optimizer = wrapped(problem)
    with Recorder(optimizer, tensorboard=tmp_path) as recorder:
        train(optimizer, problem, recorder)
    assert list(tmp_path.glob("events*"))


def test_tensorboard_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        Recorder(wrapped(Problem()), tensorboard=str(tmp_path))


def test_mistakes(tmp_path: Path) -> None:
    problem = Problem()
    optimizer = wrapped(problem)
    with pytest.raises(TypeError, match=r"Expected a MoMoWrapper.*got AdamW"):
        Recorder(optimizer.base)
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        Recorder(optimizer, every=0)
    with pytest.raises(FileNotFoundError):
        Recorder(optimizer, path=tmp_path / "missing" / "steps.csv")
    recorder = Recorder(optimizer)
    train(optimizer, problem, recorder, steps=1)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(ValueError, match=r"began with 1 parameter group\(s\).* now has 2"):
        train(optimizer, problem, recorder, steps=1)
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match="record was called after close"):
        recorder.record()
