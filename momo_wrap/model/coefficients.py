"""The coefficients of equations (1) and (2), from how groups average and how they start."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from momo_wrap.engine.scalars import Scalar, vector
from momo_wrap.model.momentum import Averaging, Coefficients


class Start(Enum):
    """What a group's averages contain before a step.

    Attributes:
        RUNNING: The steps so far.
        FRESH: Nothing, like the base's buffers.
        HISTORY: The base's buffers contain gradients whose losses are unknown. The model starts as
            if all earlier losses had been equal to the first one that it sees.
        JOINED: The losses of the earlier groups; the buffers are empty.
    """

    RUNNING = 0
    FRESH = 1
    HISTORY = 2
    JOINED = 3


def coefficients_of(
    averagings: Sequence[Averaging], starts: Sequence[Start], like: Tensor
) -> Coefficients:
    """Return the coefficients of a step.

    Args:
        averagings: How each group averages at this step.
        starts: What each group's averages contain.
        like: A tensor of the device and dtype of the scalars.
    """
    pairs = list(zip(averagings, starts, strict=True))
    weight = vector([first_weight(averaging, start) for averaging, start in pairs], like)
    loss_weight = weight
    if Start.JOINED in starts:
        loss_weight = vector(
            [a.weight if s is Start.JOINED else first_weight(a, s) for a, s in pairs], like
        )
    zero = torch.zeros_like(weight)
    are_corrected = [averaging.bias_corrected for averaging in averagings]
    corrected = vector([float(its) for its in are_corrected], like)
    return Coefficients(
        decay=vector([averaging.decay for averaging in averagings], like),
        intake=torch.stack([zero, zero, loss_weight, weight]),
        loss_intake=torch.stack([loss_weight, zero, zero, zero]),
        buffer_scale=vector([averaging.buffer_scale for averaging in averagings], like),
        grad_scale=vector([averaging.grad_scale for averaging in averagings], like),
        corrected=None if all(are_corrected) else corrected,
        uncorrected=1.0 - corrected,
        uses_gradient=any(averaging.uses_gradient for averaging in averagings),
    )


def first_weight(averaging: Averaging, start: Start) -> Scalar:
    """Return b, or its substitute in the first step of a group.

    Args:
        averaging: How the group averages.
        start: What its averages contain.
    """
    if start is Start.HISTORY:
        rest = 1.0 - averaging.decay
        # The sum of the weights of a long history, if it is finite.
        never_ends = not isinstance(rest, Tensor) and rest <= 0.0
        return averaging.weight if never_ends else averaging.weight / rest
    if start is Start.RUNNING or averaging.first_weight is None:
        return averaging.weight
    return averaging.first_weight
