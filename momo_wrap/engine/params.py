"""Properties of the parameters of an optimizer."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def can_move(param: Tensor) -> bool:
    """Return whether an optimizer may change a parameter, which is not frozen."""
    return param.requires_grad or param.grad is not None


def has_zero_lr(base: Optimizer) -> bool:
    """Return whether all learning rates are 0; tensors are read on the host."""
    return all("lr" in group and float(group["lr"]) == 0.0 for group in base.param_groups)
