"""Checks of losses and bounds. Each error says what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import isfinite
from numbers import Real
from types import FunctionType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss

Reduction: TypeAlias = Literal["mean", "sum"]

_INSTEAD = (
    "optimizer.step(loss=loss.mean())",
    "optimizer.step(loss=loss.real)",
    "optimizer.step(loss=loss) with such a loss, for example float(loss), or return it from the "
    "closure",
)

_BOUND_INSTEAD = (
    "optimizer.step(loss=loss, lower_bound=bound.mean())",
    "optimizer.step(loss=loss, lower_bound=bound.real)",
    "optimizer.step(loss=loss, lower_bound=bound) with such a bound, or leave it out",
)


def checked_loss(loss: object, source: str, instead: Sequence[str] = _INSTEAD) -> Loss:
    """Return a one-element tensor as it is or a number as a float; raise if it is neither."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"{source} a tensor of shape {list(loss.shape)}, expected one element. Reduce it "
                f"as for backward(), e.g. {instead[0]}."
            )
        if loss.is_complex():
            raise TypeError(
                f"{source} a complex tensor, expected a real number. Write {instead[1]}."
            )
        return loss
    if isinstance(loss, Real):
        return float(loss)
    raise TypeError(
        f"{source} {'None' if loss is None else type(loss).__name__}, expected a one-element "
        f"tensor or a number. Write {instead[2]}."
    )


def checked_bound(bound: object, source: str) -> Loss:
    """Return the lower bound of the loss of a batch; raise if it is not finite or no number."""
    value = checked_loss(bound, f"{source} got as lower_bound", _BOUND_INSTEAD)
    if not isinstance(value, Tensor) and not isfinite(value):
        raise ValueError(
            f"{source} got lower_bound={value}, expected a finite number that the loss of this "
            "batch can't go below. If there is no such number, leave it out: the bound of the rule "
            "counts."
        )
    return value


def checked_reduction(reduction: Reduction, before: Reduction | None) -> Reduction:
    """Return the reduction of a recorded loss; `before` is that of earlier losses, if any."""
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"record_loss() got reduction={reduction!r}, expected 'mean' or 'sum'. Write 'sum' if "
            "the losses of several backward() calls are not divided by their number."
        )
    if before not in (None, reduction):
        raise ValueError(
            f"record_loss() got reduction={reduction!r}, but earlier losses of this step had "
            f"{before!r}. Write the same for all losses of a step."
        )
    return reduction


def returned_by(closure: object) -> object:
    """Return the result of a closure, called with gradients enabled."""
    if not callable(closure):
        raise TypeError(
            f"step() takes a closure as its positional argument, got {type(closure).__name__}. To "
            "pass a loss, write optimizer.step(loss=loss)."
        )
    return evaluated(closure)


def evaluated(closure: Callable[[], object] | None) -> Any:
    """Return the result of a closure, called with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def same_function(one: object, other: object) -> bool:
    """Return whether two functions have the same code and the same variables, not equal ones."""
    return one is other or (
        isinstance(one, FunctionType)
        and isinstance(other, FunctionType)
        and one.__code__ is other.__code__
        and _are(one.__closure__, other.__closure__)
        and _are(one.__defaults__, other.__defaults__)
        and one.__kwdefaults__ is other.__kwdefaults__
    )


def _are(some: tuple[object, ...] | None, others: tuple[object, ...] | None) -> bool:
    return all(a is b for a, b in zip_longest(some or (), others or ()))
