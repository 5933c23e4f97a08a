"""What of ScheduleFree+ the model at an anchor gives, against it written from its formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from momo_wrap import MoMo, MoMoWrapper
from tests.adapters.test_anchored import BETA, Array, Toy
from tests.problems import last_step


@dataclass
class ScheduleFreePlus:
    """arXiv 2605.19095, as in the authors' code, without annealing of β and averages' warm-up."""

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    polyak_beta: float = 0.0
    weight_lr_power: float = 2.0
    heights: list[float] = field(default_factory=list)

    def train(self, toy: Toy) -> Array:
        """Return x after each step."""
        x = y = z = np.zeros((6, 3))
        m, v = np.zeros((6, 3)), np.zeros((6, 3))
        norm = largest = weights = 0.0
        history = []
        beta1, beta2 = self.betas
        for k, rows in enumerate(toy.batches, start=1):
            loss, grad = toy.evaluate(y, rows)
            height = loss + BETA * float((grad * (z - x)).sum())
            own = math.sqrt(math.pi / 2) * float(np.abs(grad).sum())
            norm = self.polyak_beta * norm + (1 - self.polyak_beta) * own
            rate = self.lr * max(height, 0.0) / (norm / (1 - self.polyak_beta**k))
            largest = max(largest, rate)
            weight = largest**self.weight_lr_power
            weights += weight
            m = beta1 * m + (1 - beta1) * grad
            v = beta2 * v + (1 - beta2) * grad**2
            direction = m / (1 - beta1**k) / (np.sqrt(v / (1 - beta2**k)) + self.eps)
            z = z - rate**2 * self.weight_decay * y - rate * direction
            x = x + weight / weights * (z - x)
            y = BETA * x + (1 - BETA) * z
            history.append(x)
            self.heights.append(height)
        return np.stack(history)


@dataclass
class Ours:
    """`MoMo` over the schedule-free AdamW, at a learning rate that is no limit."""

    beta2: float
    eps: float = 1e-8
    heights: list[float] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def train(self, toy: Toy) -> Array:
        """Return x after each step."""

        def make(params: list[Tensor]) -> MoMoWrapper:
            package: Any = pytest.importorskip("schedulefree")
            settings = {"betas": (BETA, self.beta2), "eps": self.eps, "weight_decay": 0.0}
            base = package.AdamWScheduleFree(params, lr=1e3, **settings)
            optimizer = MoMoWrapper(base, MoMo())
            optimizer.register_step_pre_hook(lambda *_: self._before(params[0]))
            optimizer.register_step_post_hook(lambda *_: self._after(optimizer))
            return optimizer

        return toy.train(make)[0]

    def _before(self, param: Tensor) -> None:
        assert param.grad is not None
        self.norms.append(float(param.grad.abs().sum()))

    def _after(self, optimizer: MoMoWrapper) -> None:
        record = last_step(optimizer)
        self.heights.append(float(record.value_after_decay))
        self.slopes.append(float(record.predicted_decrease) / 1e3)


def test_with_signs_for_directions_it_is_the_published_step() -> None:
    """Its constant is for other directions. The average of z has no weights here."""
    toy, signs = Toy(), Ours(beta2=0.0, eps=1e-30)
    published = ScheduleFreePlus(
        lr=math.sqrt(math.pi / 2), betas=(0.0, 0.0), eps=1e-30, weight_lr_power=0.0
    )
    np.testing.assert_allclose(signs.train(toy), published.train(toy), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(signs.heights, published.heights, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(signs.slopes, signs.norms, rtol=1e-12)


@pytest.mark.parametrize("beta2", [0.95, 0.99])
def test_its_norm_stands_in_for_the_slope_along_the_step(beta2: float) -> None:
    """√(π/2) ‖g‖₁ for ⟨g, D⁻¹ g⟩: in the mean of the steps, and in the result."""
    toy, ours = Toy(), Ours(beta2)
    published = ScheduleFreePlus(betas=(0.0, beta2))
    losses = [float(toy.evaluate(its.train(toy)[-1])[0]) for its in (ours, published)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[1] < 0.5 * math.log(3)  # at the start
    assert sum(ours.slopes) == pytest.approx(math.sqrt(math.pi / 2) * sum(ours.norms), rel=0.05)
    ratio = np.array(ours.slopes) / ours.norms
    assert ratio.std() > 0.1  # not in each of them
