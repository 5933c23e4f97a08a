"""Every scheduler of torch sets the caps, as it sets the learning rates of the bare optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from momo_wrap import MoMo, MoMoWrapper
from tests.problems import Problem, flat, last_step, take_step

STEPS = 25

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (step + 1)),
    "LambdaLR-warmup": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 10)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 15]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.1),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.01, total_iters=20),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.0, 0.1, step_size_up=5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "OneCycleLR-without-momentum": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.01, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[5],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=5),
}

BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
}


def run(
    make: Callable[[Any], Optimizer], scheduler: Callable[[Optimizer], Any], bound: float | None
) -> tuple[list[tuple[float, ...]], torch.Tensor, list[float]]:
    """The learning rates of both groups, the parameters at the end, and θ."""
    problem = Problem()
    halves = [{"params": problem.params[:2]}, {"params": problem.params[2:], "lr": 0.02}]
    optimizer = make(halves)
    if bound is not None:
        optimizer = MoMoWrapper(optimizer, MoMo(bound))
    schedule = scheduler(optimizer)
    rates, fractions = [], []
    for _ in range(STEPS):
        loss = problem.gradients()
        take_step(optimizer, loss)
        if bound is not None:
            fractions.append(float(last_step(optimizer).theta))
        args = (loss,) if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else ()
        schedule.step(*args)
        rates.append(tuple(float(group["lr"]) for group in optimizer.param_groups))
    return rates, flat(problem.params), fractions


def test_the_table_has_every_scheduler() -> None:
    found = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, LRScheduler) and not name.startswith("_")
    }
    assert found - {"LRScheduler"} <= {name.split("-")[0] for name in SCHEDULERS}


# These set the momentum too, which SGD and AdamW have under different names.
CYCLES = {name: SCHEDULERS[name] for name in ("CyclicLR", "OneCycleLR")}
PAIRS = {
    **{f"AdamW, {name}": (BASES["AdamW"], scheduler) for name, scheduler in SCHEDULERS.items()},
    **{f"SGD, {name}": (BASES["SGD"], scheduler) for name, scheduler in CYCLES.items()},
}


# which SequentialLR itself passed up to torch 2.8 at least
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize(("make", "scheduler"), PAIRS.values(), ids=PAIRS)
def test_sets_the_learning_rates_of_the_bare_optimizer(
    make: Callable[[Any], Optimizer], scheduler: Callable[[Optimizer], Any]
) -> None:
    """Without a bound the run is the bare one, also where the momentum changes."""
    bare_rates, bare, _ = run(make, scheduler, None)
    rates, wrapped, _ = run(make, scheduler, -math.inf)
    assert rates == bare_rates
    assert len(set(rates)) > 1
    torch.testing.assert_close(wrapped, bare, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
@pytest.mark.parametrize("scheduler", CYCLES.values(), ids=CYCLES)
def test_steps_are_shortened_under_it(
    make: Callable[[Any], Optimizer], scheduler: Callable[[Optimizer], Any]
) -> None:
    _, params, fractions = run(make, scheduler, 1.5)
    assert all(0.0 <= theta <= 1.0 for theta in fractions)
    assert min(fractions) < 1.0
    assert params.isfinite().all()


def test_scheduler_state_goes_with_a_checkpoint() -> None:
    """A scheduler that is loaded sets the same caps on a wrapper that is loaded."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1))
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False)
    for _ in range(5):
        take_step(optimizer, problem.gradients())
        schedule.step()
    other = MoMoWrapper(SGD(Problem().params, lr=0.1))
    loaded = lr_scheduler.OneCycleLR(other, 0.1, total_steps=20, cycle_momentum=False)
    other.load_state_dict(optimizer.state_dict())
    loaded.load_state_dict(schedule.state_dict())
    for _ in range(5):
        for some, its in ((optimizer, schedule), (other, loaded)):
            for param in some.param_groups[0]["params"]:
                param.grad = torch.zeros_like(param)
            take_step(some, torch.tensor(1.0))
            its.step()
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_averaged_model() -> None:
    """swa_utils averages the model; the wrapper's parameters are those of the model itself."""
    model = torch.nn.Linear(3, 1)
    averaged = swa_utils.AveragedModel(model)
    optimizer = MoMoWrapper(SGD(model.parameters(), lr=0.1))
    start = model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        averaged.update_parameters(model)
    means = list(averaged.module.parameters())
    assert not torch.equal(means[0], model.weight)
    assert not torch.equal(start, model.weight)
