"""What fails leaves the run as it was: numbers not finite, exceptions, killed processes."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter
from tests.problems import Problem, flat, last_step
from tests.releases import Muon

BASES: dict[str, Callable[..., MoMoWrapper]] = {
    "SGD": lambda p, **more: MoMoWrapper(SGD(p, lr=0.3, momentum=0.9), MoMo(0.5), **more),
    "AdamW": lambda p, **more: MoMoWrapper(AdamW(p, lr=0.3), MoMoStar(), **more),
    "AdamW-fused": lambda p, **more: MoMoWrapper(AdamW(p, lr=0.3, fused=True), **more),
    "proposed": lambda p, **more: MoMoWrapper(
        AdamW(p, lr=0.3), MoMo(0.5), adapter=ProposingAdapter(), **more
    ),
    "joint": lambda p, **more: MoMoWrapper(
        [Muon(p[::2], lr=0.1), AdamW(p[1::2], lr=0.1)],
        MoMo(0.5),
        adapter=[ProposingAdapter(), None],
        **more,
    ),
}

every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)


def everything(problem: Problem, optimizer: MoMoWrapper) -> str:
    """Parameters, state and scalars, with all digits."""
    torch.set_printoptions(precision=17, threshold=10**6)
    try:
        return str((problem.params, optimizer.state_dict()))
    finally:
        torch.set_printoptions(profile="default")


def spoil_loss(_: Problem, loss: Tensor, value: float) -> Tensor:
    return loss * value


def spoil_gradient(problem: Problem, loss: Tensor, value: float) -> Tensor:
    """The last element of the last parameter alone."""
    grad = problem.params[-1].grad
    assert grad is not None
    grad.view(-1)[-1] = value
    return loss


SPOIL = {"loss": spoil_loss, "gradient": spoil_gradient}
FAULTS = [("loss", math.nan), ("loss", -math.inf), ("gradient", math.nan), ("gradient", math.inf)]
every_fault = pytest.mark.parametrize(("where", "value"), FAULTS)


def faulty_run(
    make: Callable[..., MoMoWrapper], nonfinite: str, steps: int = 3
) -> tuple[Problem, MoMoWrapper, Tensor]:
    """A run of a few steps, and the loss of one more whose gradients are there."""
    problem = Problem()
    optimizer = make(problem.params, nonfinite=nonfinite)
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
    return problem, optimizer, problem.gradients()


@every_base
@every_fault
def test_skip_changes_nothing_and_counts(make: Any, where: str, value: float) -> None:
    problem, optimizer, loss = faulty_run(make, "skip")
    record = optimizer.last_step
    before = everything(problem, optimizer)
    loss = SPOIL[where](problem, loss, value)
    assert optimizer.step(loss=loss) is loss
    assert everything(problem, optimizer) == before
    assert optimizer.last_step == record
    assert optimizer.skipped_steps == 1
    optimizer.step(loss=problem.gradients())
    assert everything(problem, optimizer) != before
    assert flat(problem.params).isfinite().all()
    assert optimizer.skipped_steps == 1


@every_base
@every_fault
def test_raise_changes_nothing(make: Any, where: str, value: float) -> None:
    problem, optimizer, loss = faulty_run(make, "raise")
    before = everything(problem, optimizer)
    loss = SPOIL[where](problem, loss, value)
    with pytest.raises(FloatingPointError, match=r"is not finite\. Nothing was changed"):
        optimizer.step(loss=loss)
    assert everything(problem, optimizer) == before
    optimizer.step(loss=problem.gradients())
    assert flat(problem.params).isfinite().all()


@every_base
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_a_full_step(
    make: Any, nonfinite: str, value: float
) -> None:
    problem, optimizer, loss = faulty_run(make, nonfinite)
    before = flat(problem.params)
    try:
        optimizer.step(loss=loss * value)
    except FloatingPointError:
        assert nonfinite == "raise"
    moved = not torch.equal(flat(problem.params), before)
    assert moved == (nonfinite == "propagate")
    if moved:
        assert last_step(optimizer).theta.isnan()
        assert flat(problem.params).isnan().all()


def test_recorded_losses_of_a_skipped_step_are_forgotten() -> None:
    problem, optimizer, _ = faulty_run(BASES["SGD"], "skip")
    optimizer.record_loss(math.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    optimizer.record_loss(2.0)
    problem.gradients()
    assert optimizer.step() == 2.0
    assert optimizer.skipped_steps == 1


def test_half_precision_overflow_is_skipped() -> None:
    param = torch.ones(4, dtype=torch.float16, requires_grad=True)
    optimizer = MoMoWrapper(SGD([param], lr=0.1), nonfinite="skip")
    param.grad = torch.full_like(param, 6e4) * 2  # beyond the range
    optimizer.step(loss=1.0)
    assert optimizer.skipped_steps == 1
    assert torch.equal(param.detach(), torch.ones(4, dtype=torch.float16))


def test_steps_without_gradients() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = MoMoWrapper(SGD([param], lr=0.1), nonfinite="skip")
    optimizer.step(loss=1.0)
    assert optimizer.skipped_steps == 0
    optimizer.step(loss=math.nan)
    assert optimizer.skipped_steps == 1


class OutOfMemoryError(TorchDispatchMode):
    """Fails at one of the operations that allocate or write something."""

    def __init__(self, at: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.left == 0:
            raise torch.OutOfMemoryError("simulated")
        self.left -= 1
        return func(*args, **(kwargs or {}))


def settings_of(optimizer: MoMoWrapper) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if not name.startswith("momo_")}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize(
    "make",
    # Several optimizers are a loop over the cases of the other tests.
    [
        pytest.param(make, id=name, marks=[pytest.mark.slow] if name == "joint" else [])
        for name, make in BASES.items()
    ],
)
def test_out_of_memory_at_each_operation(make: Any) -> None:
    """Settings are the very objects that they were, and the step can be tried again."""
    at, failed = 0, True
    while failed:
        problem, optimizer, loss = faulty_run(make, "propagate", steps=1)
        before = settings_of(optimizer)
        try:
            with OutOfMemoryError(at):
                optimizer.step(loss=loss)
            failed = False
        except torch.OutOfMemoryError:
            after = settings_of(optimizer)
            assert [list(group) for group in after] == [list(group) for group in before]
            for group, its in zip(after, before, strict=True):
                assert all(group[name] is its[name] for name in its), at
        optimizer.step(loss=loss)
        assert 0.0 <= last_step(optimizer).theta <= 1.0, at
        assert flat(problem.params).isfinite().all(), at
        at += 1
    assert at > 30


@every_base
def test_out_of_memory_in_the_base_moves_nothing(make: Any) -> None:
    """However far the base has come; a proposal is taken back."""
    problem, optimizer, loss = faulty_run(make, "propagate")
    before = flat(problem.params)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    bases = getattr(optimizer.base, "optimizers", [optimizer.base])
    handle = bases[-1].register_step_post_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(loss=loss)
    assert torch.equal(flat(problem.params), before)
    handle.remove()
    optimizer.step(loss=loss)
    assert not torch.equal(flat(problem.params), before)


# Trains, and writes a checkpoint every third step; resumes from the last one.
LOOP = """
import os, sys, torch
from tests.problems import Problem
from tests.checks.test_nonfinite import BASES

name, path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
problem = Problem()
optimizer = BASES[name](problem.params)
start = 0
if os.path.exists(path):
    saved = torch.load(path, weights_only=True)
    start = saved["step"]
    with torch.no_grad():
        for param, value in zip(problem.params, saved["params"]):
            param.copy_(value)
    problem.generator.set_state(saved["generator"])
    optimizer.load_state_dict(saved["optimizer"])
for step in range(start, steps):
    optimizer.step(loss=problem.gradients())
    print(step, flush=True)
    if step % 3 == 2 or step == steps - 1:
        torch.save({
            "step": step + 1,
            "params": [p.detach() for p in problem.params],
            "generator": problem.generator.get_state(),
            "optimizer": optimizer.state_dict(),
        }, path + ".new")
        os.replace(path + ".new", path)
"""


def train_in_a_process(name: str, path: Path, steps: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOOP, name, str(path), str(steps)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW", "joint"])
def test_killed_processes_resume_to_the_same_parameters(name: str, tmp_path: Path) -> None:
    steps, generator = 400, random.Random(0)
    undisturbed = train_in_a_process(name, tmp_path / "undisturbed", steps)
    kills = 0
    for at in (60, 150, 330):
        process = train_in_a_process(name, tmp_path / "killed", steps)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= at:
                time.sleep(generator.uniform(0.0, 0.005))  # anywhere in a step or a checkpoint
                process.kill()
                kills += 1
                break
        process.wait()
        process.stdout.close()
    last = train_in_a_process(name, tmp_path / "killed", steps)
    for process in (undisturbed, last):
        process.communicate()
        assert process.returncode == 0
    assert kills == 3
    ends = [torch.load(tmp_path / which, weights_only=True) for which in ("undisturbed", "killed")]
    assert [end["step"] for end in ends] == [steps, steps]
    assert str(ends[0]["optimizer"]) == str(ends[1]["optimizer"])
    for left, right in zip(ends[0]["params"], ends[1]["params"], strict=True):
        assert torch.equal(left, right)


def test_choice_is_checked() -> None:
    with pytest.raises(ValueError, match="must be 'propagate', 'skip' or 'raise', got 'ignore'"):
        BASES["SGD"](Problem().params, nonfinite="ignore")


def test_copies_keep_the_choice() -> None:
    optimizer = BASES["SGD"](Problem().params, nonfinite="skip")
    assert copy.deepcopy(optimizer).nonfinite == "skip"
