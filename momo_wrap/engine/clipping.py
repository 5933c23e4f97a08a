"""Gradients that are clipped before the step, and by how much, for the model of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from momo_wrap.engine.scalars import Scalar, as_scalar


def clipping_of(
    groups: Sequence[Mapping[str, Any]],
    max_norm: float | None,
    recorded: Scalar | None,
    like: Tensor,
) -> Tensor | None:
    """Clip gradients to a norm, and return by what they were multiplied, with what was recorded.

    Args:
        groups: The parameter groups, over all of which the norm is taken.
        max_norm: The largest norm; None: nothing is clipped here.
        recorded: By what gradients were multiplied before; None: nobody has told.
        like: A tensor of the device and dtype of the scalars.

    Returns:
        0-dim; None where neither is known.
    """
    factor = None if recorded is None else as_scalar(recorded, like)
    if max_norm is None:
        return factor
    params = [param for group in groups for param in group["params"]]
    own = clipping_by(as_scalar(clip_grad_norm_(params, max_norm), like), max_norm)
    return own if factor is None else factor * own


def clipping_by(norm: Tensor, max_norm: float) -> Tensor:
    """Return by what gradients of a norm are multiplied where they are clipped, as torch has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
