"""Numbers and sums of numbers: in which dtype, on which device, and never waiting for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the real dtype in which values of `dtype` are computed with and summed.

    Args:
        dtype: A floating-point or complex dtype.

    Returns:
        float64 for float64 and complex128, otherwise float32.
    """
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def inner_product(left: Tensor, right: Tensor, *, stored_in_full: bool = True) -> Tensor:
    """Return the sum of the products of two flat real tensors.

    Args:
        left: Shape [elements], float32 or float64.
        right: The same shape and dtype.
        stored_in_full: Whether what they are computed from is stored in that dtype, not in a lower
            precision; it makes a difference to how fast the compiled sum is.

    Returns:
        A 0-dim tensor on their device.
    """
    if not torch.compiler.is_dynamo_compiling():
        return torch.dot(left, right)
    # A sum can be fused, a call of BLAS can't. On the CPU torch's compiler spends more on a careful
    # float32 sum than on a float64 one, unless there are values of 16 bits in the same loop.
    wide = torch.float64 if left.device.type == "cpu" and stored_in_full else left.dtype
    return (left * right).sum(dtype=wide).to(left.dtype)


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `values` on a device, without waiting for it where they come from the host.

    Args:
        values: Any tensor.
        device: Where it goes.
        dtype: What it is converted to.

    Returns:
        The tensor itself if there is nothing to do.
    """
    # The other way round the host would read before the device has written.
    return values.to(device=device, dtype=dtype, non_blocking=values.device.type == "cpu")


def total(parts: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Add up scalars that may live on several devices.

    Args:
        parts: 0-dim tensors.
        device: Where the sum goes.
        dtype: The dtype of the sum.

    Returns:
        A 0-dim tensor; 0 if there is nothing to add.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
    sums = [to_device(torch.stack(some).sum(), device, dtype) for some in by_device.values()]
    if len(sums) == 1:
        return sums[0]
    return torch.stack(sums).sum() if sums else torch.zeros((), device=device, dtype=dtype)
