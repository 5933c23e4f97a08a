"""Trains with kernels in Triton, as on a GPU, run by Triton's interpreter on the CPU.

A process of its own, because Triton reads this variable when it is imported:

    TRITON_INTERPRET=1 python -m tests.fast.triton_interpreter AdamW base
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from docs.performance.triton_code import use_driver
from momo_wrap.fast import batches, kernels
from momo_wrap.testing.blocks import block_elements
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


def main(name: str, form: Any) -> None:
    """Compare 16 steps, of all lengths, with uncompiled ones."""
    use_driver()
    # Inductor finds no Triton for CPUs, and is right: the interpreter needs none.
    warnings.filterwarnings("ignore", "Could not find an active CPU backend")
    triton = torch._inductor.config.patch(cpu_backend="triton")
    with triton, in_rows() as ran, block_elements(BLOCK):
        ends = []
        for compiled in (True, False):
            # The interpreter takes numbers as float32, and knows no square root of a float64.
            optimizer = wrapped(COMPILED[name], compiled, form=form, dtype=torch.float32)
            thetas = train(optimizer, range(16))
            ends.append({**snapshot(optimizer), "thetas": thetas})
    assert kernels.failures == {}
    assert set(ran) == {True, False}
    thetas = ends[1]["thetas"]
    assert (thetas == 0.0).any()
    assert (thetas == 1.0).any()
    assert ((thetas > 0.0) & (thetas < 1.0)).any()
    print(distance(*ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
