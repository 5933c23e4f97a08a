"""Hugging Face accelerate: `accelerator.backward` that also records the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.integrations import wrapper_of
from momo_wrap.probes import Probe

if TYPE_CHECKING:
    from accelerate import Accelerator


def backward(
    accelerator: Accelerator,
    loss: Tensor,
    optimizer: object,
    weight: float = 1.0,
    *,
    probe: Probe | None = None,
    **kwargs: Any,
) -> None:
    """Compute gradients with `accelerator.backward`, and record the loss for `optimizer.step()`.

    Call it instead of `accelerator.backward(loss)`, because the prepared optimizer's `step()` takes
    no loss. The loss of a step is the mean of the losses recorded since `zero_grad()`: of all
    batches, if gradients are accumulated.

    Args:
        accelerator: The accelerator. It divides by `gradient_accumulation_steps`, and scales if the
            precision requires it; the recorded loss is neither divided nor scaled.
        loss: The loss of the batch.
        optimizer: The optimizer that `accelerator.prepare` returned for a `MoMoWrapper`.
        weight: The weight of this batch in the mean, if its loss has a weight in the gradients.
        probe: Returns this loss at the current parameters, for rules that probe steps; see
            `MoMoWrapper.record_loss`. It must hold its batch, as `functools.partial(loss_of,
            inputs, targets)` does. With DDP it must call the module inside,
            `accelerator.unwrap_model(model)`.
        kwargs: Further arguments of `accelerator.backward`.

    Raises:
        TypeError: The optimizer is not a prepared `MoMoWrapper`, or the probe can't be called.
        ValueError: The loss has several elements, the weight is not positive, or the probe belongs
            to another batch.

    Example:
        >>> model, optimizer, loader = accelerator.prepare(model, MoMoWrapper(base), loader)
        >>> for inputs, targets in loader:
        ...     with accelerator.accumulate(model):
        ...         backward(accelerator, loss_function(model(inputs), targets), optimizer)
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """
    wrapper = wrapper_of(optimizer)
    accelerator.backward(loss, **kwargs)
    wrapper.record_loss(loss, weight, probe=probe)


def clip_grad_norm_(accelerator: Accelerator, optimizer: object, max_norm: float) -> Tensor | None:
    """Clip the gradients of an optimizer with `accelerator.clip_grad_norm_`, and record the factor.

    Call it instead of that, before `optimizer.step()`. While gradients are accumulated it is a
    no-op.

    Args:
        accelerator: The accelerator.
        optimizer: The optimizer that `accelerator.prepare` returned for a `MoMoWrapper`.
        max_norm: The maximum norm, over all parameters of the optimizer.

    Returns:
        The norm before clipping, 0-dim; None for a no-op.

    Raises:
        TypeError: The optimizer is not a prepared `MoMoWrapper`.
    """
    wrapper = wrapper_of(optimizer)
    if not accelerator.sync_gradients:
        return None
    params = [param for group in wrapper.param_groups for param in group["params"]]
    norm: Tensor = accelerator.clip_grad_norm_(params, max_norm)
    wrapper.record_clipping(clipping_by(norm, max_norm))
    return norm
