"""Functions of `torch.distributed`, under their names in this release of torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING or importlib.util.find_spec("torch.distributed.tensor.debug"):
    from torch.distributed.tensor import (
        DTensor,
        Replicate,
        Shard,
        distribute_module,
        distribute_tensor,
    )
    from torch.distributed.tensor.debug import CommDebugMode
else:  # torch 2.4
    from torch.distributed._tensor import (
        DTensor,
        Replicate,
        Shard,
        distribute_module,
        distribute_tensor,
    )
    from torch.distributed._tensor.debug import CommDebugMode

if TYPE_CHECKING:
    from torch.distributed.fsdp import fully_shard
else:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:

        def fully_shard(*_: Any, **__: Any) -> None:
            pytest.skip("fully_shard is for CUDA alone before torch 2.6")


__all__ = [
    "CommDebugMode",
    "DTensor",
    "Replicate",
    "Shard",
    "distribute_module",
    "distribute_tensor",
    "fully_shard",
]
