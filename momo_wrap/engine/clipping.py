"""Gradients that are clipped before the step, and by how much, for the model of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from momo_wrap.distributed import local, whole
from momo_wrap.engine.compat import total_norm
from momo_wrap.engine.scalars import Scalar, as_scalar


def clipping_of(
    groups: Sequence[Mapping[str, Any]],
    max_norm: float | None,
    recorded: Scalar | None,
    like: Tensor,
) -> Tensor:
    """Clip gradients to a norm, and return by what they were multiplied, with what was recorded.

    Of a batch whose gradients were multiplied by 0, as where the norm overflows, the loss keeps
    next to no weight in the model, but one that can be divided by.

    Args:
        groups: The parameter groups, over all of which the norm is taken.
        max_norm: The largest norm; None: nothing is clipped here.
        recorded: By what gradients were multiplied before; None: nobody has told.
        like: A tensor of the device and dtype of the scalars.

    Returns:
        0-dim, above 0; 1 where neither is known.
    """
    factor = as_scalar(1.0 if recorded is None else recorded, like)
    if max_norm is not None:
        params = [param for group in groups for param in group["params"]]
        factor = factor * clipping_by(as_scalar(_clipped(params, max_norm), like), max_norm)
    return factor.clamp(min=math.sqrt(torch.finfo(like.dtype).tiny))


def _clipped(params: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clip gradients, also where some are spread over other ranks than others, and return the norm.

    Torch's function takes one layout alone.
    """
    kinds: dict[object, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            kinds.setdefault(getattr(param.grad, "device_mesh", None), []).append(param.grad)
    if len(kinds) <= 1:
        return clip_grad_norm_(params, max_norm)
    norms = [whole(total_norm(grads)) for grads in kinds.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([its.to(norms[0].device) for its in norms]))
    for param in params:
        if param.grad is not None:
            local(param.grad).mul_(clipping_by(norm, max_norm).to(param.grad.device))
    return norm


def clipping_by(norm: Tensor, max_norm: float) -> Tensor:
    """Return by what gradients of a norm are multiplied where they are clipped, as torch has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
