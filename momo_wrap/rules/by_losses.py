"""What losses of different batches tell of a step size, with the noise that is between them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# What is averaged: the weights, the decreases that were observed and predicted, the square of the
# former. All are times the weight, which leaves their ratios as they are.
AVERAGED = ("weight", "observed", "predicted", "observed_square")


def averages(
    loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor, window: float
) -> dict[str, Tensor]:
    """Return the averages of (14), with the last step in them.

    Args:
        loss: That of the batch after the step.
        memory: The averages so far, and the `last_mean_loss` and `prediction` of the step.
        has_started: False where they begin anew.
        window: The number of steps that they are over.
    """
    observed = memory["last_mean_loss"] - loss
    predicted = memory["last_mean_loss"] - memory["prediction"]
    values = torch.stack([has_started, observed, predicted, observed * observed])
    # An infinite square would never be forgotten.
    largest = torch.finfo(loss.dtype).max / 1e6
    values = values.nan_to_num(nan=0.0, posinf=largest, neginf=-largest)
    last = torch.stack([memory[name] for name in AVERAGED])
    moved = torch.lerp(last, values, 1.0 / window) * has_started
    return dict(zip(AVERAGED, moved.unbind(), strict=True))


def standard_error(averaged: Mapping[str, Tensor], last_weight: Tensor, window: float) -> Tensor:
    """Return s', that of the observed decrease, equation (14).

    After n steps of equal weight, it would be sqrt(V/(n - 1)); here 1/(n - 1) is (1 - v/2)/((w - 1)
    v'), where v is the weight and v' that before the last step. With the first value, which has no
    variance, v' is 0, and the error is infinite or NaN.

    Args:
        averaged: What `averages` returned.
        last_weight: The weight before.
        window: w, the number of steps that they are over.
    """
    weight, observed = averaged["weight"], averaged["observed"]
    square = weight * averaged["observed_square"]
    variance = torch.addcmul(square, observed, observed, value=-1.0).clamp(min=0.0)
    # (1 - v/2)/((w - 1) v') by v = (1 - 1/w) v' + 1/w
    factor = (2.0 * window - 1.0) / (2.0 * window * (window - 1.0))
    return torch.addcdiv(variance * (-0.5 / window), variance, last_weight, value=factor).sqrt()


def followed(
    averaged: Mapping[str, Tensor],
    surplus: Tensor,
    noise: Tensor,
    memory: Mapping[str, Tensor],
    rate: float,
) -> Tensor:
    """Return the step size that is trusted after a verdict by losses alone, equation (17).

    Args:
        averaged: What `averages` returned.
        surplus: By how much more the loss has fallen than is required.
        noise: Which shortfall noise explains.
        memory: The step size that was `trusted` and that which was taken, `last_step_size`.
        rate: By a factor of at most e to this it changes.
    """
    # As a negative number. Unknown noise explains it all.
    explained = torch.fmax(surplus, -noise).clamp(max=0.0)
    verdict = (surplus - explained) / (averaged["predicted"].abs() - explained)
    verdict = verdict.nan_to_num(nan=0.0).clamp(-1.0, 1.0)
    # Above 1 where the step size shrinks. It then comes down to the step that was taken, if it did
    # not hold that back, but not below half of what it was.
    divisor = torch.pow(math.exp(-rate), verdict)
    least = memory["trusted"] / 2.0 / torch.threshold(divisor, 1.0, 0.5)
    return torch.maximum(memory["last_step_size"] / divisor, least)
