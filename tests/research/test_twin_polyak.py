"""Twin Polyak, against the published method written from its formulas."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from momo_wrap import MoMoWrapper
from momo_wrap.research import TwinPolyak
from tests.adapters.test_anchored import STEPS, Array, Toy
from tests.problems import Problem, flat, last_step

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
        """Move by the step to the other's height, and tell whether it was capped."""
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


class Twins:
    """Two copies of a small network that see the same batches."""

    def __init__(self, groups: int = 1) -> None:
        self.problem, other = Problem(), Problem(seed=1)
        self.params = [p.detach().requires_grad_() for p in self.problem.params + other.params]
        size = len(self.params) // (2 * groups)
        self.groups: list[dict[str, Any]] = [
            {"params": self.params[i : i + size]} for i in range(0, len(self.params), size)
        ]

    def step(self, optimizer: MoMoWrapper) -> tuple[float, float]:
        rows, half = self.problem.next_batch(), len(self.params) // 2
        first, second = (
            self.problem.loss(params, rows) for params in (self.params[:half], self.params[half:])
        )
        optimizer.zero_grad()
        (first + second).backward()
        optimizer.step(loss=first - second)
        return first.item(), second.item()


def test_several_groups_of_a_copy_are_one() -> None:
    found = []
    for groups in (1, 2, 4):
        twins = Twins(groups)
        optimizer = MoMoWrapper(SGD(twins.groups, lr=1e3, momentum=BETA), TwinPolyak())
        for _ in range(30):
            twins.step(optimizer)
        found.append(flat(twins.params))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_weight_decay_is_part_of_the_step_and_in_no_loss() -> None:
    """Also of a base that adds it to its gradients: SGD is then SGDW."""
    twins = Twins()
    base = SGD(twins.groups, lr=1e3, weight_decay=0.1)
    optimizer = MoMoWrapper(base, TwinPolyak())
    for _ in range(20):
        before = [p.detach().clone() for p in twins.params]
        first, second = twins.step(optimizer)
        half = len(before) // 2
        worse = slice(half) if first > second else slice(half, None)
        x = flat(before[worse])
        grad = flat([p.grad for p in twins.params[worse] if p.grad is not None])
        step = grad + 0.1 * x
        size = abs(first - second) / (0.5 * (grad @ step).item())
        torch.testing.assert_close(flat(twins.params[worse]), x - size * step)


@pytest.mark.parametrize("make", [Adam, AdamW])
def test_with_a_preconditioner_it_trains_far_above_the_best_learning_rate(make: Any) -> None:
    twins = Twins()
    optimizer = MoMoWrapper(make(twins.groups, lr=100.0), TwinPolyak())
    losses = [min(twins.step(optimizer)) for _ in range(200)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert not optimizer.diagnosis().symptoms  # of a loss that is around 0


def test_run_goes_on_bit_for_bit_from_a_file() -> None:
    twins, fresh = Twins(), Twins()
    optimizer, other = (
        MoMoWrapper(SGD(t.groups, lr=1e3, momentum=BETA), TwinPolyak()) for t in (twins, fresh)
    )
    for _ in range(10):
        twins.step(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    fresh.problem.generator.set_state(twins.problem.generator.get_state())
    with torch.no_grad():
        for param, value in zip(fresh.params, twins.params, strict=True):
            param.copy_(value)
    for _ in range(10):
        twins.step(optimizer)
        fresh.step(other)
    assert torch.equal(flat(fresh.params), flat(twins.params))


def test_losses_that_are_not_finite_show() -> None:
    twins = Twins()
    optimizer = MoMoWrapper(SGD(twins.groups, lr=1.0), TwinPolyak())
    twins.step(optimizer)
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
