"""Trains with kernels in Triton, as on a GPU, run by Triton's interpreter on the CPU.

A process of its own, because Triton reads this variable when it is imported:

    TRITON_INTERPRET=1 python -m tests.fast.triton_interpreter AdamW base
    TRITON_INTERPRET=1 python -m tests.fast.triton_interpreter correction
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from docs.performance.triton_code import use_driver
from momo_wrap.engine.ahead import Ahead
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.passes import Move
from momo_wrap.fast import batches, correction, kernels
from momo_wrap.fast.updates import AdamUpdate, Update
from momo_wrap.testing.blocks import block_elements
from tests.fast.on_device import on_device, reference
from tests.fast.test_ahead import two_passes
from tests.mixture import BLOCK, COMPILED, distance, snapshot, train, wrapped

# So that the tensors of the mixture have whole rows: 600, 20 and others.
ROW = 20


@contextmanager
def in_rows() -> Iterator[list[bool]]:
    """Let kernels on the CPU take rows; yield whether each that was asked for did."""
    ran: list[bool] = []
    compile_kernel = kernels._kernel

    def spy(its: Any, constants: Any, form: Any, rows: bool, variant: Any) -> Any:
        ran.append(rows)
        return compile_kernel(its, constants, form, rows, variant)

    with (
        mock.patch.object(kernels, "_kernel", spy),
        mock.patch.object(batches, "_WITHOUT_ROWS", frozenset()),
        mock.patch.object(batches, "ROW", ROW),
        mock.patch.object(kernels, "ROW", ROW),
    ):
        yield ran


def train_compiled(name: str, form: Any) -> None:
    """Compare 16 steps, of all lengths, with uncompiled ones: in two passes, and moved ahead."""
    use_driver()
    # Inductor finds no Triton for CPUs, and is right: the interpreter needs none.
    warnings.filterwarnings("ignore", "Could not find an active CPU backend")
    triton = torch._inductor.config.patch(cpu_backend="triton")
    ends = []
    for compiled, ahead in ((False, False), (True, False), (True, True)):
        passes = on_device() if ahead else two_passes()
        with triton, in_rows() as ran, block_elements(BLOCK), passes as launched:
            # The interpreter takes numbers as float32, and knows no square root of a float64.
            optimizer = wrapped(COMPILED[name], compiled, form=form, dtype=torch.float32)
            thetas = train(optimizer, range(16))
            ends.append({**snapshot(optimizer), "thetas": thetas})
        assert set(ran) == ({True, False} if compiled else set())
    assert kernels.failures == {}
    # Others have directions that the kernel does not know.
    assert bool(launched) == (name in {"SGD-momentum", "AdamW", "RAdam"})
    thetas = ends[0]["thetas"]
    assert (thetas == 0.0).any()
    assert (thetas == 1.0).any()
    assert ((thetas > 0.0) & (thetas < 1.0)).any()
    print(max(distance(ends[0], end) for end in ends[1:]))


def random_moves(*, limited: bool, decays: bool) -> list[Move]:
    """Blocks that were moved ahead, rightly, wrongly, too far, and with NaN in a buffer."""
    generator = torch.Generator().manual_seed(0)
    moves: list[Move] = []
    keeps = (0.9, 0.99) if decays else (1.0,)
    for size, keep, pull in itertools.product((1, 15, 64, 200), keeps, (0.0, 0.1)):
        columns = {
            name: [torch.rand(size, generator=generator) + 0.1]
            for name in ("param", "buffer", "exp_avg_sq")
        }
        scalars: dict[str, float | Tensor] = {"root_scale": torch.tensor(0.7), "buffer_scale": 0.5}
        block = Block(columns, {**scalars, "offset": 1e-3}, frozenset(), torch.float32)
        block.numel, block.largest = size, torch.rand((), generator=generator)
        limit = torch.tensor(0.05) if limited else None
        block.ahead = Ahead(torch.tensor(0.1), torch.tensor(0.9) if decays else None, limit)
        if (keep, pull) == (keeps[0], 0.1):
            block.pieces["buffer"][0][0] = math.nan  # which is not read where the move was right
        moves.append((block, torch.tensor(keep), torch.tensor(pull)))
    return moves


def correct_blocks() -> None:
    """Compare the kernel with operations of torch, over several chunks and parts."""
    farthest, sizes = 0.0, mock.patch.multiple(correction, _CHUNK=64, _PART=16)
    updates = {Update(), AdamUpdate()}
    for update, limited, decays in itertools.product(updates, (False, True), (False, True)):
        ends = []
        for correct in (correction.correct, reference):
            moves = random_moves(limited=limited, decays=decays)
            with sizes:
                correct(update, moves, {"plan": None})
            ends.append(torch.cat([block.pieces["param"][0] for block, _, _ in moves]))
        moves = random_moves(limited=limited, decays=decays)
        start = torch.cat([block.pieces["param"][0] for block, _, _ in moves])
        unmoved = start == ends[0]
        assert unmoved.any()
        assert not unmoved.all()
        assert torch.equal(unmoved, start == ends[1])
        torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7, equal_nan=True)
        farthest = max(farthest, (ends[0] - ends[1]).nan_to_num().abs().max().item())
    print(farthest)


if __name__ == "__main__":
    if sys.argv[1:] == ["correction"]:
        correct_blocks()
    else:
        train_compiled(*sys.argv[1:])
