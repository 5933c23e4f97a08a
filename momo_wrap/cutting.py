"""Where tensors are cut, and which are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Tensors up to this part of a block are packed: copying them costs less than a block of their own.
_SMALL_PART = 4
# A compiled pass has no temporaries, so that a block may be as large as 32-bit indices reach.
_WHOLE_BLOCK_ELEMENTS = 2**30


def is_small(size: int, limit: int) -> bool:
    """Return whether a tensor is put into a block with others.

    Args:
        size: Its number of elements.
        limit: The most elements of a block.
    """
    return size <= limit // _SMALL_PART


def packs(sizes: Sequence[int], limit: int) -> Iterator[list[slice]]:
    """Put small tensors together.

    Args:
        sizes: The numbers of elements of all tensors.
        limit: The most elements of a block.

    Yields:
        The positions of small tensors that fit into a block together, as runs of them.
    """
    pack: list[slice] = []
    filled = 0
    for position, size in enumerate(sizes):
        if not is_small(size, limit):
            continue
        if pack and filled + size > limit:
            yield pack
            pack, filled = [], 0
        if pack and pack[-1].stop == position:
            pack[-1] = slice(pack[-1].start, position + 1)
        else:
            pack.append(slice(position, position + 1))
        filled += size
    if pack:
        yield pack


def pieces_of(tensors: list[Tensor], limit: int, whole: bool) -> Iterator[list[Tensor]]:
    """Cut the tensors of one parameter, all in the same places.

    Args:
        tensors: Tensors of equal shapes.
        limit: The most elements of a piece.
        whole: Whether tensors that lie in memory alike, without gaps, are left in one piece.

    Yields:
        Views of each tensor.
    """
    if not all(tensor.is_contiguous() for tensor in tensors):
        tensors = _in_memory_order(tensors)
    if all(tensor.is_contiguous() for tensor in tensors):
        largest = _WHOLE_BLOCK_ELEMENTS if whole else limit
        flat = [tensor.view(-1) for tensor in tensors]
        if len(flat[0]) <= largest:
            yield flat
        else:
            yield from map(list, zip(*(torch.split(t, largest) for t in flat), strict=True))
        return
    if tensors[0].numel() <= limit:
        yield tensors
        return
    # The tensors lie in memory differently, or with gaps: cut along the longest dimension instead.
    shape = tensors[0].shape
    longest = max(range(len(shape)), key=lambda dim: shape[dim])
    rows = max(1, limit * shape[longest] // tensors[0].numel())
    for views in zip(*(torch.split(t, rows, dim=longest) for t in tensors), strict=True):
        yield from pieces_of(list(views), limit, whole)


def _in_memory_order(tensors: list[Tensor]) -> list[Tensor]:
    """Permute the dimensions of tensors with equal strides, the largest stride first."""
    strides = tensors[0].stride()
    if any(tensor.stride() != strides for tensor in tensors):
        return tensors
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    return [tensor.permute(order) for tensor in tensors]
