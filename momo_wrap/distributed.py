"""Local shards of tensors, and one all-reduce per step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from momo_wrap.engine.compat import dtensor_type, fsdp_module_type
from momo_wrap.engine.params import can_move

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ProcessGroup: TypeAlias = "dist.ProcessGroup | Literal['auto'] | None"
Ranks: TypeAlias = "dist.ProcessGroup | None"
_Maybe: TypeAlias = "Tensor | None"
# The loss of a step, its sums, its penalty, its offsets, the measurement of the last step, and the
# shift of its bound.
Known: TypeAlias = "tuple[Tensor, Tensor, _Maybe, _Maybe, _Maybe, _Maybe]"

# Classes of tensors that are never sharded, for a fast check of thousands.
PLAIN = (Tensor, torch.nn.Parameter)


def check_process_group(process_group: object, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise if the ranks lack this process, or ranks with shards of a parameter."""
    ranks = None if process_group == "auto" else _ranks(process_group)
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if not can_move(param):
                continue
            where = f"Parameter {position} of group {index}"
            # FSDP1 marks its shards only by this attribute.
            if getattr(param, "_fsdp_flattened", False) and dist.get_world_size() > 1:
                raise ValueError(
                    f"{where} belongs to FullyShardedDataParallel (FSDP1), which does not say how "
                    "it is sharded, expected a tensor or DTensor. Use "
                    "torch.distributed.fsdp.fully_shard."
                )
            sharded = _as_dtensor(param)
            needed = [] if sharded is None else sharded.device_mesh.mesh.flatten().tolist()
            if ranks is not None and len(needed) > 1 and not ranks.issuperset(needed):
                raise ValueError(
                    f"{where} is sharded over the ranks {needed}, but process_group has only "
                    f"{sorted(ranks) or 'this one'}, so the ranks would take different steps. "
                    "Write process_group='auto'."
                )


def _ranks(process_group: object) -> set[int]:
    if process_group is None:
        return set()
    if dist.is_available():
        if process_group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "process_group does not contain this process. Give each process a group that "
                "contains it, or process_group=None for a single process."
            )
        if isinstance(process_group, dist.ProcessGroup):
            return set(dist.get_process_group_ranks(process_group))
    raise TypeError(
        f"process_group must be 'auto', None or a group of torch.distributed, got "
        f"{process_group!r}. Write process_group='auto', or mesh.get_group('dp') for a dimension "
        "of a device mesh."
    )


def ranks_of(process_group: ProcessGroup) -> dist.ProcessGroup | None:
    """Return the ranks that share the model of the loss, or None for a single rank.

    "auto" means all ranks if `torch.distributed` is initialized.
    """
    if process_group is None or not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if process_group == "auto" else process_group
    return group if group is not None and dist.get_world_size(group) > 1 else None


def reduced(tensors: Known, group: dist.ProcessGroup) -> Known:
    """Average losses and bounds over the ranks, and add up the sums, in one all-reduce.

    The sums are local, each times `shards` of its parameters.
    """
    known = [tensor for tensor in tensors if tensor is not None]
    packed = torch.cat([tensor.reshape(-1) for tensor in known]) / dist.get_world_size(group)
    dist.all_reduce(packed, group=group)
    parts = iter(packed.split([tensor.numel() for tensor in known]))
    loss, sums, *others = [None if t is None else next(parts).view_as(t) for t in tensors]
    assert loss is not None
    assert sums is not None
    return loss, sums, others[0], others[1], others[2], others[3]


def any_rank(flag: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return whether a 0-dim flag is not 0 on any rank."""
    if group is None:
        return flag != 0
    total = flag.float().reshape(1)
    dist.all_reduce(total, group=group)
    return total[0] != 0


def reshard(params: Iterable[Tensor]) -> None:
    """Make FSDP2 gather parameters again.

    A root module keeps them gathered after a forward without a backward, so its next forward would
    use the old values.
    """
    if all(_as_dtensor(param) is None for param in params):
        return
    # Nothing else leads from parameters to their modules.
    from torch.distributed._composable_state import _module_state_mapping

    fsdp_module = fsdp_module_type()
    for module in list(_module_state_mapping):
        if isinstance(module, fsdp_module):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return the local shard of a tensor; it shares memory."""
    sharded = _as_dtensor(tensor)
    return tensor if sharded is None else sharded.to_local()


def shards(param: Tensor) -> int:
    """Return the number of different shards of a parameter.

    A sum over the local elements times this number, averaged over all ranks, is the sum over all
    elements, for any number of replicas.
    """
    sharded = _as_dtensor(param)
    if sharded is None:
        return 1
    # Not is_shard(), which is False for the placement of FSDP2 over tensor parallel.
    cut = [dim for dim, its in enumerate(sharded.placements) if not its.is_replicate()]
    return math.prod(sharded.device_mesh.size(dim) for dim in cut)


def cut_into(param: Tensor) -> list[tuple[int, int]]:
    """Return the sharded dimensions of a parameter, each with the number of shards."""
    sharded = _as_dtensor(param)
    if sharded is None:
        return []
    found: dict[int, int] = {}
    for i, its in enumerate(sharded.placements):
        dim = getattr(its, "dim", None)
        if dim is not None:
            found[dim] = found.get(dim, 1) * sharded.device_mesh.size(i)
    return [*found.items()]


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered or added up over its ranks."""
    sharded = _as_dtensor(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def aligned(grad: Tensor, param: Tensor) -> Tensor:
    """Return a gradient with the placements of its parameter."""
    sharded, its = _as_dtensor(param), _as_dtensor(grad)
    if sharded is None or its is None or its.placements == sharded.placements:
        return grad
    return its.redistribute(sharded.device_mesh, sharded.placements)


def _as_dtensor(tensor: Tensor) -> DTensor | None:
    if type(tensor) in PLAIN or not dist.is_available():
        return None  # fast, and without the import
    found: Any = tensor
    return found if isinstance(tensor, dtensor_type()) else None
