"""Trainers that call `optimizer.step()`, and how the loss reaches the optimizer.

`momo_wrap.integrations.lightning`, `.accelerate`, `.transformers`, `.fastai` and `.ignite` need the
package of that name and are imported only by name. This module needs none of them.
"""

from __future__ import annotations

from torch import Tensor

from momo_wrap.integrations.from_backward import losses_from_backward
from momo_wrap.recorder import group_suffixes, wrapper_of

__all__ = ["losses_from_backward", "step_metrics", "wrapper_of"]


def step_metrics(optimizer: object) -> dict[str, Tensor]:
    """Return θ and the effective learning rates of the last step, by names for logging.

    Args:
        optimizer: The wrapper, or a trainer's wrapper around it.

    Returns:
        A dict of 0-dim tensors, without host synchronization: `momo/theta`, the fraction of the
        base's step, and `momo/effective_lr`. With several parameter groups `momo/effective_lr/pg1`
        and so on, or with the group's `"name"` instead of `pg1`; likewise `momo/theta/pg1` if the
        rule chose a fraction for each. Empty before the first step.

    Raises:
        TypeError: `optimizer` is not and does not contain a `MoMoWrapper`.

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
