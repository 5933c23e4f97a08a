"""Twin Polyak, against the published method written from its formulas."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from momo_wrap import MoMoWrapper
from momo_wrap.research import TwinPolyak
from tests.adapters.test_anchored import STEPS, Array, Toy
from tests.problems import Problem, flat, goes_on_from_a_file, last_step, trajectory

BETA = 0.9


def starts() -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    first: Array = generator.normal(size=(6, 3))
    return first, generator.normal(size=(6, 3))


class Published:
    """One of the two sequences of arXiv 2508.17288, whose averages start at 0."""

    def __init__(self, x: Array, beta: float) -> None:
        self.x, self.beta = x, beta
        self.f, self.gamma, self.d = 0.0, 0.0, np.zeros_like(x)

    def height(self, loss: float, grad: Array) -> float:
        """F + <d, x> - gamma."""
        share = 1 - self.beta
        self.f = self.beta * self.f + share * loss
        self.gamma = self.beta * self.gamma + share * float((grad * self.x).sum())
        self.d = self.beta * self.d + share * grad
        return self.f + float((self.d * self.x).sum()) - self.gamma

    def move(self, gap: float, cap: float) -> bool:
        """Move by the step to the other's height, and return whether it was capped."""
        size = gap / (0.5 * float((self.d**2).sum()))
        self.x = self.x - min(size, cap) * self.d
        return size > cap


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("lr", [1e4, 0.3])
def test_it_is_the_published_method_with_a_cap(lr: float, beta: float) -> None:
    toy, capped, moved = Toy(), set(), set()
    pair = [Published(start, beta) for start in starts()]
    params = [torch.tensor(start, requires_grad=True) for start in starts()]
    base = SGD([{"params": [param]} for param in params], lr=lr, momentum=beta)
    optimizer = MoMoWrapper(base, TwinPolyak())
    for rows in toy.batches:
        losses = []
        for param in params:
            loss, grad = toy.evaluate(param.detach().numpy(), rows)
            losses.append(loss)
            param.grad = torch.from_numpy(grad)
        optimizer.step(loss=losses[0] - losses[1])
        heights = [its.height(*toy.evaluate(its.x, rows)) for its in pair]
        worse = int(heights[1] > heights[0])
        capped.add(pair[worse].move(abs(heights[0] - heights[1]), lr / (1 - beta)))
        moved.add(worse)
        assert float(last_step(optimizer).theta[1 - worse]) == 0.0
        for param, its in zip(params, pair, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), its.x, rtol=1e-8, atol=1e-10)
    assert moved == {0, 1}
    assert capped == ({False} if lr > 1.0 else {False, True})
    # Without a bound, of which the smallest loss of these labels is far above 0.
    final = [float(toy.evaluate(its.x)[0]) for its in pair]
    assert min(final) < 0.75 * min(float(toy.evaluate(start)[0]) for start in starts())
    assert len(toy.batches) == STEPS


class Twins(Problem):
    """Two copies of a small network that see the same batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.params += Problem(seed=1).params
        self.losses: list[float] = []

    def gradients(self) -> Tensor:
        """Set the gradients of the sum, and return the difference of the losses."""
        rows = self.next_batch()
        loss, other = (self.loss(params, rows) for params in (self.params[:4], self.params[4:]))
        grads = torch.autograd.grad(loss + other, self.params)
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.losses = [loss.item(), other.item()]
        return (loss - other).detach()


def in_groups(params: list[Tensor], size: int = 4) -> list[dict[str, Any]]:
    return [{"params": params[i : i + size]} for i in range(0, 8, size)]


def sgd(params: list[Tensor], size: int = 4) -> MoMoWrapper:
    return MoMoWrapper(SGD(in_groups(params, size), lr=1e3, momentum=BETA), TwinPolyak())


def test_several_groups_of_a_copy_are_one() -> None:
    one, two, four = (trajectory(partial(sgd, size=size), 30, Twins()) for size in (4, 2, 1))
    torch.testing.assert_close(two, one)
    torch.testing.assert_close(four, one)


def test_weight_decay_is_part_of_the_step_and_in_no_loss() -> None:
    """Also of a base that adds it to its gradients: SGD is then SGDW."""
    twins, moved = Twins(), set()
    base = SGD(in_groups(twins.params), lr=1e3, weight_decay=0.1)
    optimizer = MoMoWrapper(base, TwinPolyak())
    for _ in range(20):
        difference, before = twins.gradients(), flat(twins.params)
        grad = flat([p.grad for p in twins.params if p.grad is not None])
        optimizer.step(loss=difference)
        half = len(before) // 2
        worse = slice(half) if difference > 0 else slice(half, None)
        step = grad[worse] + 0.1 * before[worse]
        size = difference.abs() / (0.5 * grad[worse] @ step)
        torch.testing.assert_close(flat(twins.params)[worse], before[worse] - size * step)
        moved.add(bool(difference > 0))
    assert moved == {False, True}


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_with_a_preconditioner_it_trains_far_above_the_best_learning_rate(kind: Any) -> None:
    twins, losses = Twins(), []
    optimizer = MoMoWrapper(kind(in_groups(twins.params), lr=100.0), TwinPolyak())
    for _ in range(200):
        optimizer.step(loss=twins.gradients())
        losses.append(min(twins.losses))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert not optimizer.diagnosis().symptoms  # of a loss that is around 0


def test_run_goes_on_bit_for_bit_from_a_file() -> None:
    goes_on_from_a_file(sgd, Twins)


def test_losses_that_are_not_finite_show() -> None:
    twins = Twins()
    optimizer = sgd(twins.params)
    optimizer.step(loss=twins.gradients())
    optimizer.step(loss=math.nan)
    assert last_step(optimizer).theta.isnan().all()


@pytest.mark.parametrize("count", [1, 3])
def test_groups_that_are_no_two_copies(count: int) -> None:
    params: list[Tensor] = [torch.ones(2, requires_grad=True) for _ in range(count)]
    for param in params:
        param.grad = torch.ones(2)
    optimizer = MoMoWrapper(SGD([{"params": [p]} for p in params], lr=1.0), TwinPolyak())
    message = f"TwinPolyak got {count} parameter groups, expected two, or twice as many as one"
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.step(loss=1.0)
    assert all(torch.equal(param, torch.ones(2)) for param in params)


def test_factor() -> None:
    with pytest.raises(ValueError, match=r"TwinPolyak got c=0\.0, expected a number above 0"):
        TwinPolyak(c=0.0)
    assert repr(TwinPolyak(c=1)) == "TwinPolyak(lower_bound=-inf, c=1.0)"
