"""Special cases of SGD."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from momo_wrap import MoMoWrapper
from momo_wrap.rules import WeightDecayForm


def test_gradients_are_left_alone() -> None:
    """The foreach form of Nesterov would add the buffer into `.grad`."""
    for settings in ({}, {"maximize": True}, {"foreach": True}, {"fused": True}):
        x = torch.ones(3, requires_grad=True)
        optimizer = MoMoWrapper(SGD([x], lr=0.1, momentum=0.9, nesterov=True, **settings))
        for _ in range(3):
            x.grad = torch.tensor([1.0, 2.0, 3.0])
            optimizer.step(loss=1.0)
            assert torch.equal(x.grad, torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("form", ["proximal", "decoupled", "scaled"])
def test_weight_decay_stays_out_of_the_buffer(form: WeightDecayForm) -> None:
    """In these forms the loss does not contain the L2 term, so its gradient must not either."""
    x = torch.full((2,), 5.0, requires_grad=True)
    x.grad = torch.ones(2)
    base = SGD([x], lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer = MoMoWrapper(base, weight_decay_form=form)
    optimizer.step(loss=1.0)
    assert torch.equal(optimizer.state[x]["momentum_buffer"], torch.ones(2))
