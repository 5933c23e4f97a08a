"""Clipping of gradients before the step, and its factor for the model of the loss."""

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
    """Clip gradients to a norm, and return the total factor, including the recorded one.

    If gradients were multiplied by 0, because the norm overflowed, the loss gets a tiny positive
    weight in the model, which can be divided by.

    Args:
        groups: The parameter groups; the norm is over all of them.
        max_norm: The maximum norm; None: no clipping here.
        recorded: The factor of earlier clipping; None: none was recorded.
        like: A tensor of the device and dtype of the scalars.

    Returns:
        A 0-dim tensor above 0; 1 without clipping.
    """
    factor = as_scalar(1.0 if recorded is None else recorded, like)
    if max_norm is not None:
        params = [param for group in groups for param in group["params"]]
        factor = factor * clipping_by(as_scalar(_clipped(params, max_norm), like), max_norm)
    return factor.clamp(min=math.sqrt(torch.finfo(like.dtype).tiny))


def _clipped(params: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clip gradients, also those on different device meshes, and return the norm.

    Torch's function supports only one mesh.
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
    """Return the factor by which torch clips gradients of a norm."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
