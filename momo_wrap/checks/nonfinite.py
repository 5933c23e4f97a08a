"""Loss and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from momo_wrap.adapters.base import ParamGroup
from momo_wrap.checks.arguments import Loss, NonFinite
from momo_wrap.distributed import any_rank, local
from momo_wrap.engine.scalars import as_scalar


def count_nonfinite(loss: Loss, groups: Sequence[ParamGroup]) -> Tensor:
    """Return a 0-dim tensor that is 0 where loss and gradients are finite.

    Args:
        loss: The loss.
        groups: The base's parameter groups.
    """
    grads = [local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
    grads = [grad for grad in grads if grad.numel()]  # a rank's part may be empty
    largest = [get_total_norm(grads, math.inf)] if grads else []
    numbers = [*largest, as_scalar(loss, largest[0]) if largest else torch.as_tensor(loss)]
    return (~torch.isfinite(torch.stack(numbers))).sum()


def must_skip(
    choice: NonFinite,
    loss: Loss,
    groups: Sequence[ParamGroup],
    ranks: dist.ProcessGroup | None,
) -> bool:
    """Wait for loss and gradients, and return whether a step with them is left out.

    Args:
        choice: What to do where numbers are not finite.
        loss: The loss of this process.
        groups: The base's parameter groups.
        ranks: The processes that take the step together; None: this one alone.

    Raises:
        FloatingPointError: A number is not finite, with "raise".
    """
    found = any_rank(count_nonfinite(loss, groups), ranks)
    if not found.item():
        return False
    if choice == "raise":
        raise FloatingPointError(
            f"The loss, {float(loss)} here, or a gradient, here or on another rank, is not finite. "
            "Nothing was changed. Lower the learning rate's cap, clip gradients, or write "
            "nonfinite='skip'."
        )
    return True
