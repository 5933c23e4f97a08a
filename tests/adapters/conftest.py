"""Fixtures for the tests of compiled passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from momo_wrap.adapters.compiled import CompiledPasses
from momo_wrap.adapters.passes import Summed

from momo_wrap.adapters import compiled
from momo_wrap.engine.blocks import Block, block_elements
from tests.mixture import BLOCK


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Cut into blocks as the mixture of parameters expects, and refuse failures to compile."""
    with block_elements(BLOCK):
        yield
    failures = dict(compiled._failures)
    compiled._failures.clear()
    assert failures == {}


@pytest.fixture
def compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the size of each block that goes through compiled passes."""
    sizes: list[int] = []
    sum_up = CompiledPasses.sum_up

    def spy(self: CompiledPasses, block: Block) -> Summed:
        sizes.append(sum(piece.numel() for piece in block.pieces["param"]))
        return sum_up(self, block)

    monkeypatch.setattr(CompiledPasses, "sum_up", spy)
    return sizes
