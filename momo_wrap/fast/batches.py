"""Blocks that one call of a kernel takes together, since each call costs as much as a small block.

A kernel is compiled for a fixed number of blocks; where there are fewer, some of no account are
added. A block that is alone has a kernel for one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from momo_wrap.engine.blocks import Block

# More would compile for longer, and gain little.
_TOGETHER = 4
FILLING_ELEMENTS = 16


def batches(blocks: Sequence[Block], scales: Sequence[Sequence[Tensor]]) -> Iterator[list[int]]:
    """Give the positions of blocks that one call takes: those with the very same scalars.

    Args:
        blocks: The blocks.
        scales: What a kernel gets besides, for each block.
    """
    alike: dict[object, list[int]] = {}
    for i, (block, its) in enumerate(zip(blocks, scales, strict=True)):
        scalars = [id(v) if isinstance(v, Tensor) else v for v in block.scalars.values()]
        dtypes = [pieces[0].dtype for pieces in block.pieces.values()]
        own = i if block.names or block.numel < 2 or len(block.groups) > 1 else None
        key = (*scalars, *map(id, its), *dtypes, own, block.ahead is None, is_gradient(block))
        alike.setdefault(key, []).append(i)
    for indices in alike.values():
        for start in range(0, len(indices), _TOGETHER):
            yield indices[start : start + _TOGETHER]


def filled(columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return the columns of a batch, with others of no account where it is not full."""
    if len(columns) == 1:
        return columns
    kinds = tuple((name, column.dtype) for name, column in columns[0].items())
    device = next(iter(columns[0].values())).device
    return [*columns, *_filling(kinds, device)[len(columns) :]]


@functools.lru_cache(maxsize=16)
def _filling(
    kinds: tuple[tuple[str, torch.dtype], ...], device: torch.device
) -> Sequence[dict[str, Tensor]]:
    return [
        {name: torch.ones(FILLING_ELEMENTS, dtype=dtype, device=device) for name, dtype in kinds}
        for _ in range(_TOGETHER)
    ]


def is_gradient(block: Block) -> bool:
    """Return whether the buffer is the gradient itself."""
    return block.pieces["buffer"][0].is_set_to(block.pieces["grad"][0])
