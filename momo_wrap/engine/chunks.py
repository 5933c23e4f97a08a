"""Splitting large tensors into blocks, and packing small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements in a block. 2^18 float32 values are 1 MiB, which fits the second-level cache of a CPU
# core. An accelerator needs larger blocks to be busy; five temporaries of 2^21 are 40 MiB.
CPU_ELEMENTS = 2**18
ACCELERATOR_ELEMENTS = 2**21
# Tensors up to this part of a block are packed: copying costs less than a separate block.
_SMALL_PART = 4
# A compiled pass has no temporaries, so 32-bit indices limit the block.
_WHOLE_ELEMENTS = 2**30


def most_elements(device: torch.device) -> int:
    """Return the maximum number of elements of a block."""
    return CPU_ELEMENTS if device.type == "cpu" else ACCELERATOR_ELEMENTS


def is_small(size: int, limit: int) -> bool:
    """Return whether a tensor is packed into a block with others."""
    return size <= limit // _SMALL_PART


def packs(sizes: Sequence[int], limit: int) -> list[slice]:
    """Pack small tensors; return the positions of those of each block."""
    found, start, filled = [], 0, 0
    for position, size in enumerate(sizes):
        if filled and filled + size > limit:
            found.append(slice(start, position))
            start, filled = position, 0
        filled += size
    return [*found, slice(start, len(sizes))] if sizes else []


def split(tensors: list[Tensor], limit: int, *, whole: bool) -> Iterator[list[Tensor]]:
    """Yield views of the tensors of one parameter, all split at the same places.

    With `whole`, tensors with the same memory layout and without gaps stay in one piece.
    """
    if not all(tensor.is_contiguous() for tensor in tensors):
        tensors = _in_memory_order(tensors)
    if all(tensor.is_contiguous() for tensor in tensors):
        largest = _WHOLE_ELEMENTS if whole else limit
        flat = [tensor.view(-1) for tensor in tensors]
        if len(flat[0]) <= largest:
            yield flat
        else:
            yield from map(list, zip(*(torch.split(t, largest) for t in flat), strict=True))
        return
    if tensors[0].numel() <= limit:
        yield tensors
        return
    # With other memory layouts, split along the longest dimension.
    shape = tensors[0].shape
    longest = max(range(len(shape)), key=lambda dim: shape[dim])
    rows = max(1, limit * shape[longest] // tensors[0].numel())
    for views in zip(*(torch.split(t, rows, dim=longest) for t in tensors), strict=True):
        yield from split(list(views), limit, whole=whole)


def lie_alike(tensors: list[Tensor]) -> bool:
    """Return whether tensors of one shape have the same memory layout and no gaps."""
    plain = all(tensor.is_contiguous() for tensor in tensors)
    return plain or all(tensor.is_contiguous() for tensor in _in_memory_order(tensors))


def _in_memory_order(tensors: list[Tensor]) -> list[Tensor]:
    """Permute the dimensions of tensors with equal strides, the largest stride first."""
    strides = tensors[0].stride()
    if any(tensor.stride() != strides for tensor in tensors):
        return tensors
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    return [tensor.permute(order) for tensor in tensors]
