"""The wrapper's own 0-dim tensors: where they live and how they survive checkpoints.

They are entries of the parameter groups, each under its own key. Param groups are what every tool
that saves an optimizer keeps; entries in `state` are not an option, because base optimizers
test `len(state) == 0` and distributed checkpointing takes every key for a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from momo_wrap.distributed import whole
from momo_wrap.params import can_move
from momo_wrap.reductions import Scalar, accumulation_dtype, to_device

# What the names of entries in the groups start with.
PREFIX = "momo_"


def scalars_like(groups: Iterable[Mapping[str, Any]]) -> Tensor:
    """Return an empty tensor of the device and dtype that the wrapper's scalars have.

    Args:
        groups: The base's parameter groups.

    Returns:
        On the device of the first parameter that is not on the CPU (so that an accelerator never
        waits for the host), else the CPU; float64 if any parameter is, else float32. Only
        parameters that can move count.
    """
    # In their order: a dictionary keeps it.
    params = [param for group in groups for param in group["params"] if can_move(param)]
    kinds = dict.fromkeys((param.device, param.dtype) for param in params)
    device = next((d for d, _ in kinds if d.type != "cpu"), torch.device("cpu"))
    wide = any(accumulation_dtype(dtype) is torch.float64 for _, dtype in kinds)
    return torch.empty(0, device=device, dtype=torch.float64 if wide else torch.float32)


def scalar(value: Scalar) -> Scalar:
    """Return a setting such as lr, which may be a one-element tensor, as a number or 0-dim tensor.

    Args:
        value: A Python number or a tensor of one element.
    """
    return value.detach().reshape(()) if isinstance(value, Tensor) else value


def as_scalar(value: Scalar, like: Tensor) -> Tensor:
    """Return a number or one-element tensor as a 0-dim tensor.

    Args:
        value: The value.
        like: A tensor of the wanted device and dtype.
    """
    if isinstance(value, Tensor):
        return to_device(whole(value.detach()).reshape(()), like.device, like.dtype)
    return torch.full((), value, device=like.device, dtype=like.dtype)


def largest_lr(groups: Iterable[Mapping[str, Any]], like: Tensor) -> Tensor:
    """Return the largest learning rate as a 0-dim tensor.

    Args:
        groups: The base's parameter groups; a group without a learning rate counts as 1.
        like: A tensor of the wanted device and dtype.
    """
    rates = [1.0 if group.get("lr") is None else group["lr"] for group in groups]
    numbers = [rate for rate in rates if not isinstance(rate, Tensor)]
    if len(numbers) == len(rates):
        return as_scalar(max(*numbers, 0.0), like)  # a schedule's rounding may fall below
    return torch.stack([as_scalar(rate, like) for rate in rates]).amax()


def kept_scalars(
    group: dict[str, Any], prefix: str, initial: Mapping[str, float], like: Tensor
) -> dict[str, Tensor]:
    """Return the scalars that are kept in a parameter group, making those that are missing.

    Args:
        group: A parameter group of the base.
        prefix: What the keys in the group start with.
        initial: The names, with the values that scalars start from.
        like: A tensor of the wanted device and dtype; entries that a checkpoint brought from
            elsewhere are converted.

    Returns:
        Name to the 0-dim tensor that is the group's entry.
    """
    kept = {}
    for name, start in initial.items():
        value = group.get(prefix + name, start)
        if not (
            isinstance(value, Tensor) and (value.device, value.dtype) == (like.device, like.dtype)
        ):
            value = group[prefix + name] = as_scalar(value, like)
        kept[name] = value
    return kept


def stacked(kept: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the scalars of all groups by name.

    Args:
        kept: What `kept_scalars` returned for each group.

    Returns:
        Name to a tensor of shape [groups].
    """
    return {name: torch.stack([scalars[name] for scalars in kept]) for name in kept[0]}


def write_scalars(kept: Sequence[Mapping[str, Tensor]], values: Mapping[str, Tensor]) -> None:
    """Write new values into the kept scalars, in place.

    Args:
        kept: What `kept_scalars` returned for each group.
        values: For each name one value per group, of shape [groups].
    """
    columns = {name: value.reshape(-1).unbind() for name, value in values.items()}
    targets = [scalars[name] for scalars in kept for name in scalars]
    sources = [columns[name][i] for i, scalars in enumerate(kept) for name in scalars]
    if torch.compiler.is_dynamo_compiling():
        # Inductor may compute a source of a foreach copy from a target that it has written already,
        # and it forgets a plain copy into a 0-dim float64 tensor (torch 2.13).
        for target, source in zip(targets, sources, strict=True):
            target.view(1).copy_(source.view(1))
    elif targets:
        torch._foreach_copy_(targets, sources)
