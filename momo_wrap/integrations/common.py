"""What the integrations share: finding the wrapper, and the numbers that are logged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from momo_wrap.recorder import group_suffixes
from momo_wrap.recorder import wrapper_of as wrapper_of


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
    thetas = (
        _named("momo/theta", suffixes, theta.unbind()) if theta.dim() else {"momo/theta": theta}
    )
    return {**thetas, **_named("momo/effective_lr", suffixes, wrapper.effective_lrs())}


def _named(name: str, suffixes: Sequence[str], values: Sequence[Tensor]) -> dict[str, Tensor]:
    pairs = zip(suffixes, values, strict=False)  # a group may be new since the step
    return {f"{name}{suffix}": value for suffix, value in pairs}
