"""Checks for a loss or gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from momo_wrap.adapters.base import ParamGroup
from momo_wrap.checks.arguments import Loss, NonFinite
from momo_wrap.distributed import any_rank, local
from momo_wrap.engine.compat import total_norm
from momo_wrap.engine.scalars import as_scalar


def must_skip(
    choice: NonFinite,
    loss: Loss,
    bound: Loss | None,
    groups: Sequence[ParamGroup],
    ranks: dist.ProcessGroup | None,
) -> bool:
    """Return whether to skip a step with this loss, bound and gradients; a host synchronization.

    Raises:
        FloatingPointError: A number on one of the ranks is not finite, and `choice` is "raise".
    """
    grads = [local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
    grads = [grad for grad in grads if grad.numel()]  # a rank's shard may be empty
    largest = [total_norm(grads, math.inf)] if grads else []
    like = largest[0] if largest else torch.as_tensor(loss)
    given = [loss] if bound is None else [loss, bound]
    numbers = [*largest, *(as_scalar(number, like) for number in given)]
    found = any_rank((~torch.isfinite(torch.stack(numbers))).sum(), ranks)
    if not found.item():
        return False
    if choice == "raise":
        raise FloatingPointError(
            f"The loss, {float(loss)} on this rank, its bound, or a gradient, on this or another "
            "rank, is not finite. Nothing was changed. Lower the learning rate, clip gradients, or "
            "write nonfinite='skip'."
        )
    return True
