"""What the integrations share: finding the wrapper, and the numbers that are logged."""

from __future__ import annotations

from torch import Tensor

from momo_wrap.wrapper import MoMoWrapper


def wrapper_of(optimizer: object) -> MoMoWrapper:
    """Return the `MoMoWrapper` inside the optimizer that a trainer hands out.

    Args:
        optimizer: The wrapper itself, or what a trainer made of it, which keeps it as `optimizer`.

    Returns:
        The wrapper.

    Raises:
        TypeError: There is none.

    Example:
        >>> model, optimizer = accelerator.prepare(model, MoMoWrapper(base))
        >>> wrapper_of(optimizer).last_step.theta
    """
    inner = optimizer
    while not isinstance(inner, MoMoWrapper):
        if not hasattr(inner, "optimizer"):
            raise TypeError(
                f"Expected a MoMoWrapper, or what a trainer made of one, got "
                f"{type(optimizer).__name__}. Give the trainer MoMoWrapper(optimizer)."
            )
        inner = inner.optimizer
    return inner


def step_metrics(optimizer: object) -> dict[str, Tensor]:
    """Return what the last step amounted to, by the names that it is logged under.

    Args:
        optimizer: The wrapper, or what a trainer made of it.

    Returns:
        `momo/theta`, the fraction of the base's step, and `momo/effective_lr`, the learning rate
        that it amounted to, as 0-dim tensors that nobody has waited for. With several parameter
        groups `momo/effective_lr/pg1` and so on, or with the group's `"name"` in place of `pg1`.
        Empty before the first step.

    Raises:
        TypeError: There is no wrapper.

    Example:
        >>> accelerator.log({name: float(value) for name, value in step_metrics(optimizer).items()})
    """
    wrapper = wrapper_of(optimizer)
    if wrapper.last_step is None:
        return {}
    groups = enumerate(wrapper.param_groups, start=1)
    suffixes = [f"/{group.get('name', f'pg{number}')}" for number, group in groups]
    if len(suffixes) == 1:
        suffixes = [""]
    lrs = zip(suffixes, wrapper.effective_lrs(), strict=False)  # a group may be new since the step
    metrics = {f"momo/effective_lr{suffix}": lr for suffix, lr in lrs}
    return {"momo/theta": wrapper.last_step.theta, **metrics}
