"""Judging a step size by the losses of different batches, despite the noise between them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# The averaged quantities: the weights, the observed and predicted decreases, the square of the
# observed ones. All are multiplied by the weight, which does not change their ratios.
AVERAGED = ("weight", "observed", "predicted", "observed_square")


def averages(
    loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor, window: float
) -> dict[str, Tensor]:
    """Return the averages of (14), including the last step.

    Args:
        loss: The loss of the batch after the step.
        memory: The averages so far, and the `last_mean_loss` and `prediction` of the step.
        has_started: False where they start again.
        window: The number of steps to average over.
    """
    observed = memory["last_mean_loss"] - loss
    predicted = memory["last_mean_loss"] - memory["prediction"]
    values = torch.stack([has_started, observed, predicted, observed * observed])
    # An infinite square would never decay.
    largest = torch.finfo(loss.dtype).max / 1e6
    values = values.nan_to_num(nan=0.0, posinf=largest, neginf=-largest)
    last = torch.stack([memory[name] for name in AVERAGED])
    moved = torch.lerp(last, values, 1.0 / window) * has_started
    return dict(zip(AVERAGED, moved.unbind(), strict=True))


def standard_error(averaged: Mapping[str, Tensor], last_weight: Tensor, window: float) -> Tensor:
    """Return s', the standard error of the observed decrease, equation (14).

    After n steps of equal weight, it would be sqrt(V/(n - 1)); here 1/(n - 1) is (1 - v/2)/((w - 1)
    v'), where v is the weight and v' that before the last step. With the first value, which has no
    variance, v' is 0, and the error is infinite or NaN.

    Args:
        averaged: What `averages` returned.
        last_weight: The weight before the last step.
        window: w, the number of steps to average over.
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
    """Return the trusted step size after a verdict by losses only, equation (17).

    Args:
        averaged: What `averages` returned.
        surplus: How much more the loss has fallen than required.
        noise: The shortfall that noise explains.
        memory: The `trusted` step size and the `last_step_size` taken.
        rate: The step size changes by a factor of at most e^rate.
    """
    # A negative number. Unknown noise explains everything.
    explained = torch.fmax(surplus, -noise).clamp(max=0.0)
    verdict = (surplus - explained) / (averaged["predicted"].abs() - explained)
    verdict = verdict.nan_to_num(nan=0.0).clamp(-1.0, 1.0)
    # Above 1 if the step size shrinks. It then falls to the step size taken if it did not limit
    # that one, but not below half of its value.
    divisor = torch.pow(math.exp(-rate), verdict)
    least = memory["trusted"] / 2.0 / torch.threshold(divisor, 1.0, 0.5)
    return torch.maximum(memory["last_step_size"] / divisor, least)
