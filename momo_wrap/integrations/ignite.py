"""ignite: a loss function that also records the loss for the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from momo_wrap.integrations import wrapper_of


def recorded(loss_function: Callable[..., Tensor], optimizer: object) -> Callable[..., Tensor]:
    """Return a loss function that records each loss for the next `optimizer.step()`.

    For trainers that take a loss function and call `step()` without a loss, such as ignite's
    `create_supervised_trainer`. With `gradient_accumulation_steps` the loss of a step is the mean
    over its batches, and with a scaler it is the unscaled loss.

    Losses computed without gradients, as in an evaluation, are not recorded. Rules that request
    probes get none.

    Args:
        loss_function: A function or a module, called once per batch as `loss_function(predictions,
            targets)`.
        optimizer: The wrapper, or a trainer's wrapper around it.

    Returns:
        A function with the arguments and the result of `loss_function`.

    Raises:
        TypeError: `optimizer` is not and does not contain a `MoMoWrapper`.

    Example:
        >>> loss_function = recorded(torch.nn.functional.cross_entropy, optimizer)
        >>> create_supervised_trainer(model, optimizer, loss_function).run(loader, max_epochs=2)
    """
    wrapper = wrapper_of(optimizer)

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        loss = loss_function(*args, **kwargs)
        if torch.is_grad_enabled() and loss.requires_grad:
            wrapper.record_loss(loss)
        return loss

    return recording
