"""The lower bound of a single batch, in the place of the rule's own."""

from __future__ import annotations

import math

from torch import Tensor

from momo_wrap.engine.scalars import Scalar, as_scalar


def shift_of_batch(given: Scalar, own: float, like: Tensor, sign: float) -> Tensor:
    """Return by how much the bound of a batch is above that of the rule, equation (18).

    Taken off the loss, it leaves a loss of which the rule's bound is the bound: the model averages
    it with the weights of the losses, and steps without a bound of their own go along.

    Args:
        given: The bound of the batch, in the sense of the user's objective.
        own: The bound of the rule, in that of a minimisation.
        like: A tensor of the device and dtype of the scalars.
        sign: -1 where the loss is maximised.

    Returns:
        0-dim, in the sense of a minimisation.

    Raises:
        ValueError: The rule has no bound.
    """
    if own == -math.inf:
        raise ValueError(
            "A lower_bound was given for a batch, to a rule without one, so that an average over "
            "steps with and without would be none. Give the rule a number, which counts in steps "
            "that have no lower_bound of their own: MoMoWrapper(optimizer, MoMo(lower_bound=0.0))."
        )
    return as_scalar(given, like) * sign - own
