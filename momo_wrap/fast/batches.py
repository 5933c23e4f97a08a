"""Batches of blocks for one call of a kernel, because each call costs as much as a small block.

A kernel is compiled for a fixed number of blocks; smaller batches are padded. A single block has
its own kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from momo_wrap.engine.blocks import Block
from momo_wrap.engine.chunks import most_elements, split

# More would compile for longer, and gain little.
_TOGETHER = 4
FILLING_ELEMENTS = 16
# The elements of a row, on accelerators. Inductor's Triton code sums up rows in the kernel that
# writes them. A sum of all elements is another kernel, which computes the new state again.
ROW = 256
_WITHOUT_ROWS = frozenset({"cpu"})


def in_rows(column: Tensor) -> bool:
    """Return whether a kernel can take a column in rows."""
    elements = column.numel()
    return column.device.type not in _WITHOUT_ROWS and elements > 0 and elements % ROW == 0


def batches(blocks: Sequence[Block], scales: Sequence[Sequence[Tensor]]) -> Iterator[list[int]]:
    """Yield the positions of the blocks of each call, which have the same scalars.

    Args:
        blocks: The blocks.
        scales: Further arguments of the kernel, for each block.
    """
    alike: dict[object, list[int]] = {}
    for i, (block, its) in enumerate(zip(blocks, scales, strict=True)):
        scalars = [id(v) if isinstance(v, Tensor) else v for v in block.scalars.values()]
        dtypes = [pieces[0].dtype for pieces in block.pieces.values()]
        # Packed blocks are copied, one at a time.
        own = i if block.packing is not None or block.numel < 2 else None
        form = (block.ahead is None, is_gradient(block), in_rows(block.pieces["buffer"][0]))
        key = (*scalars, *map(id, its), *dtypes, own, *form)
        alike.setdefault(key, []).append(i)
    for indices in alike.values():
        for start in range(0, len(indices), _TOGETHER):
            yield indices[start : start + _TOGETHER]


def filled(columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return the columns of a batch, padded if it is not full."""
    if len(columns) == 1:
        return columns
    kinds = tuple((name, column.dtype) for name, column in columns[0].items())
    first = columns[0]["buffer"]
    elements = ROW if in_rows(first) else FILLING_ELEMENTS
    return [*columns, *_filling(kinds, first.device, elements)[len(columns) :]]


@functools.lru_cache(maxsize=16)
def _filling(
    kinds: tuple[tuple[str, torch.dtype], ...], device: torch.device, elements: int
) -> Sequence[dict[str, Tensor]]:
    return [
        {name: torch.ones(elements, dtype=dtype, device=device) for name, dtype in kinds}
        for _ in range(_TOGETHER)
    ]


def is_gradient(block: Block) -> bool:
    """Return whether the buffer is the gradient."""
    return block.pieces["buffer"][0].is_set_to(block.pieces["grad"][0])


def in_parts(block: Block) -> Iterator[Block]:
    """Split a block for a kernel into small blocks, for uncompiled passes."""
    if block.packing is not None:
        yield block
        return
    tensors = [pieces[0] for pieces in block.pieces.values()]
    for views in split(tensors, most_elements(tensors[0].device), whole=False):
        pieces = {name: [view] for name, view in zip(block.pieces, views, strict=True)}
        yield replace(block, pieces=pieces)
