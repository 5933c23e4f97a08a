"""Numbers, 0-dim tensors and vectors of them, converted without host synchronization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from momo_wrap.distributed import whole
from momo_wrap.engine.params import can_move

Scalar: TypeAlias = float | Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and complex128, for other dtypes float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it.

    Args:
        device: The device.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `values` on a device, non-blocking if they come from the host."""
    if values.dtype is dtype and values.device == device:
        return values
    # To the host, a non-blocking copy would be read before it is complete.
    return values.to(device=device, dtype=dtype, non_blocking=values.device.type == "cpu")


def as_number(value: Scalar) -> Scalar:
    """Return a setting such as lr, a number or one-element tensor, as a number or 0-dim tensor."""
    return value.detach().reshape(()) if isinstance(value, Tensor) else value


def detached(value: Scalar) -> Scalar:
    """Return a value in at least float32, without its graph."""
    if not isinstance(value, Tensor):
        return value
    wide = torch.promote_types(value.dtype, torch.float32)
    return whole(value.detach()).reshape(()).to(wide)


def as_scalar(value: Scalar, like: Tensor) -> Tensor:
    """Return a number or one-element tensor as a 0-dim tensor."""
    if not isinstance(value, Tensor):
        return torch.full((), value, device=like.device, dtype=like.dtype)
    value = value.detach()
    if value.dim() or type(value) is not Tensor:
        value = whole(value).reshape(())
    return to_device(value, like.device, like.dtype)


def numbers_of(values: Tensor) -> list[Any]:
    """Return a tensor as numbers; one on the meta device as 0-dim tensors."""
    if values.is_meta:
        rows = values.clone().unbind()
        return [*rows] if values.dim() == 1 else [row.unbind() for row in rows]
    return [*values.tolist()]


def vector(values: Sequence[Scalar], like: Tensor) -> Tensor:
    """Return numbers and one-element tensors as a tensor of shape [len(values)]."""
    numbers = [value for value in values if not isinstance(value, Tensor)]
    if len(numbers) < len(values):
        return torch.stack([as_scalar(value, like) for value in values])
    if numbers.count(numbers[0]) == len(numbers):
        # Filled on the device, because a copy from the host can't be captured in a CUDA graph.
        return torch.full((len(numbers),), numbers[0], device=like.device, dtype=like.dtype)
    return torch.tensor(numbers, device=like.device, dtype=like.dtype)


def largest(values: Sequence[Scalar], like: Tensor) -> Tensor:
    """Return the largest of numbers and one-element tensors as a 0-dim tensor.

    A schedule's rounding may leave learning rates slightly below 0, which count as 0.
    """
    return vector(values, like).amax().clamp(min=0.0)


def comparable(value: object) -> object:
    """Return a key to compare settings by; tensors may change in place, and never compare equal."""
    return object() if isinstance(value, Tensor) else value


def scalar_template(groups: Iterable[Mapping[str, Any]], otherwise: Tensor | None = None) -> Tensor:
    """Return an empty tensor of the device and dtype of the wrapper's scalars.

    Args:
        groups: The base's parameter groups. Parameters that can't move do not count.
        otherwise: The device and dtype if none can move; None: float32 on the CPU.

    Returns:
        On the device of the first parameter that is not on the CPU (to avoid synchronizing an
        accelerator), else the CPU; float64 if any parameter has it, else float32.
    """
    params = [p for group in groups for p in group["params"]]
    # A dictionary keeps their order.
    kinds = dict.fromkeys((p.device, p.dtype) for p in params if can_move(p))
    if not kinds and otherwise is not None:
        return otherwise.new_empty(0)
    device = next((d for d, _ in kinds if d.type != "cpu"), torch.device("cpu"))
    wide = any(accumulation_dtype(dtype) is torch.float64 for _, dtype in kinds)
    return torch.empty(0, device=device, dtype=torch.float64 if wide else torch.float32)
