"""Blocks of another size, for tests."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from momo_wrap.engine import chunks


def block_elements(elements: int) -> AbstractContextManager[object]:
    """Plan with blocks of at most `elements` elements on the CPU."""
    return mock.patch.object(chunks, "CPU_ELEMENTS", elements)
