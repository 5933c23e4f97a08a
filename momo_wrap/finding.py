"""What logging needs to find: the wrapper inside what a trainer made of it, names of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def group_suffixes(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tells the parameter groups apart in the names of what is logged.

    Args:
        groups: The parameter groups.

    Returns:
        `/pg1` and so on, or `/` and the group's `"name"`; an empty string for a single group.
    """
    if len(groups) == 1:
        return [""]
    return [f"/{group.get('name', f'pg{number}')}" for number, group in enumerate(groups, start=1)]
