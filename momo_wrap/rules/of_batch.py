"""The lower bound of a single batch, instead of the rule's."""

from __future__ import annotations

import math

from torch import Tensor

from momo_wrap.engine.scalars import Scalar, as_scalar


def shift_of_batch(given: Scalar, own: float, like: Tensor, sign: float) -> Tensor:
    """Return how far the bound of a batch is above that of the rule, equation (18).

    The loss minus this shift has the rule's bound. The model averages it with the weights of the
    losses, together with steps that have no separate bound.

    Args:
        given: The bound of the batch, in the sense of the user's objective.
        own: The bound of the rule, in the sense of minimization.
        like: A tensor of the device and dtype of the scalars.
        sign: -1 if the loss is maximized.

    Returns:
        A 0-dim tensor, in the sense of minimization.

    Raises:
        ValueError: The rule has no bound.
    """
    if own == -math.inf:
        raise ValueError(
            "step() got a lower_bound for a batch, but the rule has none, so bounds can't be "
            "averaged over steps. Give the rule a number, which counts in steps without a separate "
            "lower_bound: MoMoWrapper(optimizer, MoMo(lower_bound=0.0))."
        )
    return as_scalar(given, like) * sign - own
