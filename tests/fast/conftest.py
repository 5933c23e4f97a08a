"""Fixtures for the tests of compiled passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from momo_wrap.engine.blocks import Block
from momo_wrap.fast import kernels
from momo_wrap.testing.blocks import block_elements
from tests.mixture import BLOCK


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Use blocks as the mixture of parameters expects them, and refuse failures to compile."""
    with block_elements(BLOCK):
        yield
    failures = dict(kernels.failures)
    kernels.failures.clear()
    assert failures == {}


@pytest.fixture
def compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the size of each block that is summed up by a kernel."""
    sizes: list[int] = []
    run = kernels.run

    def spy(traced: Callable[..., Any], key: Any, block: Block, *scales: Tensor) -> Any:
        result = run(traced, key, block, *scales)
        if result is not None and key[0] == "sum up":
            sizes.append(block.pieces["buffer"][0].numel())
        return result

    monkeypatch.setattr(kernels, "run", spy)
    return sizes
