"""Fixtures for the tests of compiled passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from momo_wrap.fast import kernels
from momo_wrap.fast.batches import FILLING_ELEMENTS
from momo_wrap.testing.blocks import block_elements
from tests.mixture import BLOCK


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Use blocks as the mixture of parameters expects them, and raise if compilation fails."""
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

    def spy(traced: Callable[..., Any], key: Any, columns: Any, *more: Any) -> Any:
        result = run(traced, key, columns, *more)
        if result is not None and key[0] == "sum up":
            found = [own["buffer"].numel() for own in columns]
            sizes.extend(size for size in found if size != FILLING_ELEMENTS)
        return result

    monkeypatch.setattr(kernels, "run", spy)
    return sizes
