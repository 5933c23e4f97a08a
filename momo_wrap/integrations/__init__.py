"""Trainers that call the optimizer by themselves, and how the loss reaches it there.

`momo_wrap.integrations.lightning`, `.accelerate` and `.transformers` need the package of that name
and are imported only where they are named. What is here needs none of them.
"""

from __future__ import annotations

from torch import Tensor

from momo_wrap.integrations.from_backward import losses_from_backward
from momo_wrap.recorder import group_suffixes, wrapper_of

__all__ = ["losses_from_backward", "step_metrics", "wrapper_of"]


def step_metrics(optimizer: object) -> dict[str, Tensor]:
    """Return what the last step amounted to, by the names that it is logged under.

    Args:
        optimizer: The wrapper, or what a trainer made of it.

    Returns:
        `momo/theta`, the fraction of the base's step, and `momo/effective_lr`, the learning rate
        that it amounted to, as 0-dim tensors that nobody has waited for. With several parameter
        groups `momo/effective_lr/pg1` and so on, or with the group's `"name"` in place of `pg1`;
        likewise `momo/theta/pg1` where the rule chose a fraction for each. Empty before the first
        step.

    Raises:
        TypeError: There is no wrapper.

    Example:
        >>> accelerator.log({name: float(value) for name, value in step_metrics(optimizer).items()})
    """
    wrapper = wrapper_of(optimizer)
    if wrapper.last_step is None:
        return {}
    suffixes = group_suffixes(wrapper.param_groups)
    theta = wrapper.last_step.theta
    # A group may be new since the step.
    thetas = zip(suffixes, theta.unbind(), strict=False) if theta.dim() else [("", theta)]
    lrs = zip(suffixes, wrapper.effective_lrs(), strict=False)
    return {
        **{f"momo/theta{suffix}": value for suffix, value in thetas},
        **{f"momo/effective_lr{suffix}": value for suffix, value in lrs},
    }
