"""Blocks of another size, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from momo_wrap.engine import chunks


@contextmanager
def block_elements(elements: int) -> Iterator[None]:
    """Plan with blocks of another size on the CPU.

    Args:
        elements: The most elements of a block.
    """
    before, chunks.CPU_ELEMENTS = chunks.CPU_ELEMENTS, elements
    try:
        yield
    finally:
        chunks.CPU_ELEMENTS = before
