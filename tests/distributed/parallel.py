"""What is in `torch.distributed`, under the names that it has in this release of torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING or importlib.util.find_spec("torch.distributed.tensor.debug"):
    from torch.distributed.tensor import (
        DTensor,
        Replicate,
        Shard,
        distribute_module,
        distribute_tensor,
    )
    from torch.distributed.tensor.debug import CommDebugMode
else:  # before 2.5
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
    except ImportError:  # before 2.6
        from torch.distributed._composable.fsdp import fully_shard

__all__ = [
    "CommDebugMode",
    "DTensor",
    "Replicate",
    "Shard",
    "distribute_module",
    "distribute_tensor",
    "fully_shard",
]
