"""The parameters before a step that is to be measured, in a state dict."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMoWrapper
from tests.problems import Problem, flat
from tests.test_probes import EverySlope

Make = Callable[[list[Tensor]], Any]


def two_groups(params: list[Tensor], decay: float = 0.3) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:]}]
    return Adam([*groups[:1], {**groups[1], "weight_decay": decay}], lr=0.1)


def two_optimizers(params: list[Tensor]) -> list[Optimizer]:
    coupled = SGD(params[:2], lr=0.1, momentum=0.9, weight_decay=0.2)
    return [coupled, AdamW(params[2:], lr=0.1, weight_decay=0.1)]


BASES: dict[str, Make] = {
    "coupled decay": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
    "a decay of a tensor": lambda p: SGD(p, lr=0.1, weight_decay=torch.tensor(0.2)),
    "two groups": two_groups,
    "two optimizers": two_optimizers,
}


def halfway(make: Make) -> tuple[Problem, MoMoWrapper]:
    """A run whose last step is still to be measured."""
    problem = Problem()
    optimizer = MoMoWrapper(make(problem.params), EverySlope())
    for _ in range(3):
        optimizer.step(loss=problem.gradients())
    return problem, optimizer


def seen(problem: Problem, optimizer: MoMoWrapper) -> tuple[tuple[float, float, float], Tensor]:
    """Take a step, and return the measurements of the last one, and the new parameters."""
    optimizer.step(loss=problem.gradients())
    assert isinstance(optimizer.rule, EverySlope)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return optimizer.rule.seen[-1], flat(params)


def through_a_file(make: Make, optimizer: MoMoWrapper) -> MoMoWrapper:
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    resumed = MoMoWrapper(make([p.detach().clone().requires_grad_() for p in params]), EverySlope())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return resumed


def pickled(_: Make, optimizer: MoMoWrapper) -> MoMoWrapper:
    found: MoMoWrapper = pickle.loads(pickle.dumps(optimizer))
    return found


def copied(_: Make, optimizer: MoMoWrapper) -> MoMoWrapper:
    return copy.deepcopy(optimizer)


@pytest.mark.parametrize("transfer", [through_a_file, pickled, copied])
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_the_step_is_measured_as_it_would_have_been(make: Make, transfer: Any) -> None:
    problem, optimizer = halfway(make)
    moved = transfer(make, optimizer)
    twin = copy.deepcopy(problem)
    twin.params[:] = [param for group in moved.param_groups for param in group["params"]]
    expected, found = seen(problem, optimizer), seen(twin, moved)
    assert expected[0][2]
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


def test_parameters_that_have_left_since_are_left_out() -> None:
    problem, optimizer = halfway(partial(two_groups, decay=0.0))
    gone = optimizer.param_groups[1]["params"].pop()
    del optimizer.state[gone]
    saved = optimizer.state_dict()
    count = sum("momo_previous" in entry for entry in saved["state"].values())
    assert count == len(problem.params) - 1
    twin = [param.detach().clone().requires_grad_() for param in problem.params]
    base = two_groups(twin, decay=0.0)
    base.param_groups[1]["params"].pop()
    resumed = MoMoWrapper(base, EverySlope())
    resumed.load_state_dict(copy.deepcopy(saved))
    problem.gradients()
    for own, param in zip(twin, problem.params, strict=True):
        own.grad = None if param is gone or param.grad is None else param.grad.clone()
    gone.grad = None
    for wrapped in (optimizer, resumed):
        wrapped.step(loss=1.0)
    slopes = [r.seen[-1][0] for r in (optimizer.rule, resumed.rule) if isinstance(r, EverySlope)]
    assert slopes[0] == slopes[1] != 0.0


@pytest.mark.parametrize("change", ["joined", "left"])
def test_other_groups_are_measured_as_before(change: str) -> None:
    problem, optimizer = halfway(two_groups)
    if change == "joined":
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    else:
        for param in optimizer.param_groups.pop()["params"]:
            del optimizer.state[param]
    saved = optimizer.state_dict()["state"]
    kept = [index for index, entry in saved.items() if "momo_previous" in entry]
    assert kept == list(range(len(problem.params) if change == "joined" else 1))


def test_where_there_is_no_way_back_nothing_is_saved() -> None:
    """A parameter has another shape than it had."""
    problem, optimizer = halfway(two_groups)
    problem.params[0].data = torch.zeros(3, dtype=torch.float64)
    saved = optimizer.state_dict()
    assert not any("momo_previous" in entry for entry in saved["state"].values())
    assert not any("momo_predicted" in group for group in saved["param_groups"])
