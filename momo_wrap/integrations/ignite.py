"""ignite: a loss function that also hands the loss to the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from momo_wrap.integrations import wrapper_of


def recorded(loss_function: Callable[..., Tensor], optimizer: object) -> Callable[..., Tensor]:
    """Return a loss function that records each loss for the next `optimizer.step()`.

    For trainers that take a loss function and call `step()` bare, as those of ignite's
    `create_supervised_trainer` do. With `gradient_accumulation_steps` the loss of a step is the
    mean of its batches, and with a scaler it is the loss before it is scaled.

    What is computed without gradients, such as the loss of an evaluation, is not recorded. Rules
    that ask for probes get none.

    Args:
        loss_function: Called once for each batch, as `loss_function(predictions, targets)`; a
            function or a module.
        optimizer: The wrapper, or what a trainer made of it.

    Returns:
        A function that takes and returns what `loss_function` does.

    Raises:
        TypeError: The optimizer is no `MoMoWrapper`.

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
