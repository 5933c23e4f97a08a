"""What every reading adapter gets from its base class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from momo_wrap import Averaging, MoMo, MoMoWrapper
from momo_wrap.adapters import Reading, ReadingAdapter
from tests.checks.test_errors import parameter
from tests.problems import last_step
from tests.test_wrapper import one_parameter


class Mixture(ReadingAdapter):
    """d = B / 2 + 2 g over SGD's buffer, with factors that are numbers or tensors."""

    def __init__(self, *factors: Any) -> None:
        self.factors = factors

    def averaging(self, group: Any, state: Any) -> Averaging:
        a, p, q = self.factors
        return Averaging(decay=a, weight=1.0, buffer_scale=p, grad_scale=q)

    def read(self, group: Any, params: Any, state: Any) -> Reading:
        return Reading([state[p]["momentum_buffer"] for p in params])


def tensors(*values: float, device: str = "cpu") -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, device=device) for value in values]


@pytest.mark.parametrize("factors", [(0.5, 0.5, 2.0), tensors(0.5, 0.5, 2.0)], ids=["num", "tens"])
def test_a_mixture_of_buffer_and_gradient_by_hand(factors: Any) -> None:
    """By hand: B = 4, d = 10, ρ = 5/2, so θ = 2 · 5/2 / (10 · 10) and the move is θ · 10."""
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    x.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer = MoMoWrapper(SGD([x], lr=1.0, momentum=0.5), adapter=Mixture(*factors))
    optimizer.step(loss=2.0)
    assert last_step(optimizer).theta == pytest.approx(0.05)
    assert x.item() == pytest.approx(2.5)
    # B = 6, d = 11, F = 3, R = 3/2, ρ = 11/4, E = 4 (-1/2) / 2 = -1
    optimizer.step(loss=2.0)
    assert last_step(optimizer).value_after_decay == pytest.approx((1.5 + 4.0 - 0.5) / 2.75)
    assert last_step(optimizer).theta == pytest.approx(5.0 / 121.0)


def test_coefficients_that_are_tensors_are_never_read() -> None:
    """In a step, coefficients and settings that are tensors are never read."""
    params = [torch.empty(4, device="meta", requires_grad=True) for _ in range(2)]
    groups = [{"params": [param]} for param in params]
    for param in params:
        param.grad = torch.empty_like(param)
    factors = [torch.empty((), device="meta") for _ in range(3)]
    # A bare SGD reads a weight decay that is a tensor.
    optimizer = MoMoWrapper(
        SGD(groups, lr=0.1, momentum=0.5), adapter=Mixture(*factors), weight_decay_form="scaled"
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = torch.empty((), device="meta")
    for _ in range(2):
        optimizer.step(loss=torch.empty((), device="meta"))
    assert last_step(optimizer).theta.is_meta


def test_base_without_weight_decay() -> None:
    """A base without the setting weight_decay keeps its groups as they were."""
    param = parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    del optimizer.param_groups[0]["weight_decay"]
    names = list(optimizer.param_groups[0])
    optimizer.step(loss=1.0)
    assert list(optimizer.param_groups[0]) == names
    assert not torch.equal(param.detach(), torch.tensor([1.0, 2.0]))


def test_effective_lr_is_without_decay() -> None:
    """θα, without the factor of the weight decay."""
    _, optimizer = one_parameter(lr=0.5, weight_decay=1.0)
    optimizer.rule = MoMo(-math.inf)
    optimizer.step(loss=2.0)
    assert optimizer.effective_lrs() == [0.5]
