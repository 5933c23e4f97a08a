"""Corrections of moves ahead on accelerators, where the host does not know whether they are needed.

One kernel goes over all blocks. It compares on the device what was moved with what should have
been, and returns at once where that is the same.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from momo_wrap.engine.blocks import Block, real
from momo_wrap.engine.chunks import is_small, most_elements
from momo_wrap.engine.passes import Move
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar, accumulation_dtype, as_scalar, to_device
from momo_wrap.fast.batches import is_gradient
from momo_wrap.fast.updates import Update

_DEVICES = frozenset({"cuda"})
# The elements of a program, and of a part of it that is loaded at once.
_CHUNK, _PART = 65536, 2048


def is_possible(plan: Plan) -> bool:
    """Return whether all parameters are on accelerators with such a kernel, and any moves ahead."""
    params = [param for cell in plan.cells for param in cell.params]
    devices = {param.device.type for param in params}
    return devices <= _DEVICES and any(map(_is_taken, params)) and _has_triton()


def _is_taken(param: Tensor) -> bool:
    """Return whether a parameter can move ahead: it is not packed, and stored in full."""
    is_in_full = accumulation_dtype(param.dtype) is param.dtype.to_real()
    return is_in_full and not is_small(real(param).numel(), most_elements(param.device))


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def takes(update: Update, block: Block) -> bool:
    """Return whether the kernel can correct a block: in one piece, with a direction it knows."""
    if not update.direction or block.packing is not None or block.number("grad_scale") != 0.0:
        return False
    # The gradient would be elsewhere in every step, and have the sign of the base.
    in_place = all(pieces[0].is_contiguous() for pieces in block.pieces.values())
    return in_place and not is_gradient(block)


def correct(update: Update, moves: Sequence[Move], kept: dict[object, Any]) -> None:
    """Put the parameters of blocks back and move them, where they were moved wrongly.

    Args:
        update: The update of the optimizer state.
        moves: Blocks of one kind, all moved ahead, with their moves.
        kept: A cache that lives as long as the plan, for tables on the device.
    """
    from momo_wrap.fast.correction_kernel import correction_kernel

    moves = [move for move in moves if move[0].numel]
    blocks = [block for block, _, _ in moves]
    if not blocks:
        return
    has_root = len(update.direction) > 1
    second = "max_exp_avg_sq" if "max_exp_avg_sq" in blocks[0].pieces else "exp_avg_sq"
    columns = ("param", "buffer", second if has_root else "buffer")
    addresses = tuple(b.pieces[name][0].data_ptr() for b in blocks for name in columns)
    sizes = tuple(block.numel for block in blocks)
    x = blocks[0].pieces["param"][0]
    known = kept.get(("tables", x.device, x.dtype))
    if known is None or known[0] != (addresses, sizes):
        known = ((addresses, sizes), _tables(addresses, sizes, x.device))
        kept["tables", x.device, x.dtype] = known
    tables = known[1]
    scales = _scales(update, moves, x)
    is_limited = blocks[0].ahead is not None and blocks[0].ahead.limit is not None
    forms = {"has_root": has_root, "is_limited": is_limited, "length": _CHUNK, "part": _PART}
    with torch.cuda.device_of(x):  # where Triton launches
        correction_kernel[(len(tables[-1]),)](*tables, scales, len(blocks), **forms)


def _tables(
    addresses: tuple[int, ...], sizes: tuple[int, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """Return addresses, sizes and first chunk of each block, and the block of each chunk."""
    chunks = [-(-size // _CHUNK) for size in sizes]
    firsts = [0, *accumulate(chunks)][:-1]
    of_chunk = [block for block, count in enumerate(chunks) for _ in range(count)]
    made = map(torch.tensor, (addresses, sizes, firsts, of_chunk))
    return tuple(to_device(table, device, torch.int64) for table in made)


def _scales(update: Update, moves: Sequence[Move], x: Tensor) -> Tensor:
    """Return the scalars of each block, of shape [8, blocks]."""
    rows: list[list[Scalar]] = []
    for block, keep, pull in moves:
        assert block.ahead is not None
        ahead, limit, largest = block.ahead, block.ahead.limit, block.largest
        if limit is None or largest is None:
            limit = largest = pull  # which are not read
        scale, *offset = [block.scalars[name] for name in update.direction]
        before = [ahead.pull, 1.0 if ahead.keep is None else ahead.keep]
        rows.append([*before, pull, keep, limit, largest, scale, *(offset or [0.0])])
    return torch.stack([_row(values, x) for values in zip(*rows, strict=True)])


def _row(values: Sequence[Scalar], x: Tensor) -> Tensor:
    """Return the values of all blocks, which often are one and the same."""
    if all(value is values[0] for value in values):
        return as_scalar(values[0], x).expand(len(values))
    return torch.stack([as_scalar(value, x) for value in values])
