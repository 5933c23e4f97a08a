"""What older releases of torch lack, or have under another name, for tests that use it.

A test that makes an optimizer which its torch does not have is skipped there and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.optim import Adafactor, Muon
else:

    def _optimizer(name: str, release: str) -> type[Optimizer]:
        class Missing(Optimizer):
            def __init__(self, *args: Any, **settings: Any) -> None:
                pytest.skip(f"torch.optim.{name} is new in torch {release}")

        return getattr(torch.optim, name, Missing)

    Adafactor = _optimizer("Adafactor", "2.5")
    Muon = _optimizer("Muon", "2.9")

__all__ = ["TORCH", "Adafactor", "Muon", "needs_torch"]

# (major, minor)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def needs_torch(major: int, minor: int, reason: str) -> pytest.MarkDecorator:
    """Skip a test, or a row of parameters, before a release of torch in which it was seen to work.

    It may work in older ones, of which not all were tried.
    """
    return pytest.mark.skipif((major, minor) > TORCH, reason=f"torch {major}.{minor}: {reason}")
