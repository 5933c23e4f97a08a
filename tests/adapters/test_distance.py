"""A base that goes by its distance from the start keeps the start itself, wrapped or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from tests.problems import Problem, flat, last_step, trajectory


class DistanceOverGradients(Optimizer):
    """DoG, arXiv 2302.12022: η_k = max_{i ≤ k}( ‖x_i - x_0‖ , r ) / sqrt( Σ_{i ≤ k} ‖g_i‖² )."""

    def __init__(self, params: Any, r: float = 0.1) -> None:
        super().__init__(params, {"r": r})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None
        (group,) = self.param_groups
        distance = 0.0
        for param in group["params"]:
            state = self.state[param]
            if not state:
                state["start"] = param.clone()
            distance += float((param - state["start"]).square().sum())
            group["squares"] = group.get("squares", 0.0) + float(param.grad.square().sum())
        group["r"] = max(group["r"], math.sqrt(distance))
        for param in group["params"]:
            param.sub_(param.grad, alpha=group["r"] / math.sqrt(group["squares"]))


def wrapped(bound: float) -> Callable[[list[Tensor]], MoMoWrapper]:
    adapter = ProposingAdapter(beta=0.0)
    return lambda p: MoMoWrapper(DistanceOverGradients(p), MoMo(bound), adapter=adapter)


def test_without_a_bound_it_is_the_bare_base() -> None:
    assert torch.equal(trajectory(wrapped(-math.inf), 50), trajectory(DistanceOverGradients, 50))


@pytest.mark.parametrize("bound", [0.0, 0.8])
def test_the_step_is_the_shorter_of_its_own_and_of_polyak(bound: float) -> None:
    """With the distance that the parameters really moved, after shortened steps."""
    problem, cut = Problem(), 0
    optimizer = wrapped(bound)(problem.params)
    start, farthest, squares = flat(problem.params), 0.1, 0.0
    for _ in range(100):
        loss, x = problem.gradients(), flat(problem.params)
        grad = flat([p.grad for p in problem.params if p.grad is not None])
        farthest = max(farthest, float((x - start).norm()))
        square = float(grad.square().sum())
        squares += square
        optimizer.step(loss=loss)
        polyak = max(float(loss) - bound, 0.0) / square
        own = farthest / math.sqrt(squares)
        torch.testing.assert_close(flat(problem.params), x - min(own, polyak) * grad)
        cut += polyak < own
    assert (cut > 10) == (bound == 0.8)
    assert 0 < last_step(optimizer).theta <= 1
