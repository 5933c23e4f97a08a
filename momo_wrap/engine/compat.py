"""Functions that older releases of torch lack, or have under another name, down to 2.4.

Each is looked up, without version numbers, so patched releases work too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


_get_total_norm: Callable[[Sequence[Tensor], float], Tensor] | None
_get_total_norm = getattr(torch.nn.utils, "get_total_norm", None)


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return the norm of the norms of tensors, as `clip_grad_norm_` computes it."""
    if _get_total_norm is not None:
        return _get_total_norm(tensors, norm_type)
    # Before 2.6 it was only a part of `clip_grad_norm_`.
    if not tensors:
        return torch.tensor(0.0)
    norms = torch._foreach_norm(list(tensors), norm_type)
    device = tensors[0].device
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]), norm_type)
    return norm


def is_dispatched_by_a_mode() -> bool:
    """Return whether a `TorchDispatchMode` of the user is active."""
    if _TELLS_MODES:
        return _python_dispatch.is_in_torch_dispatch_mode(include_infra_modes=False)
    # In 2.4 it is also True during and after torch's own tracing.
    return bool(_python_dispatch._get_current_dispatch_mode_stack())


_TELLS_MODES = bool(inspect.signature(_python_dispatch.is_in_torch_dispatch_mode).parameters)


def watched_step(step: Any) -> object:
    """Return the step that a scheduler's patch on an optimizer calls."""
    wrapped = getattr(step, "__wrapped__", None)
    if wrapped is None and hasattr(step, "_wrapped_by_lr_sched"):
        # Before 2.5 the patch has no `__wrapped__`.
        wrapped = inspect.getclosurevars(step).nonlocals.get("func")
    return wrapped


def run_as_it_is() -> AbstractContextManager[object]:
    """Make `torch.compile` run functions uncompiled; before 2.6 it still compiles them."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if set_stance is None else set_stance("force_eager")


@functools.cache
def dtensor_type() -> type[DTensor]:
    """Return the class `DTensor`, which is imported only here."""
    try:
        from torch.distributed.tensor import DTensor  # from 2.5 on
    except ImportError:
        from torch.distributed._tensor.api import DTensor
    return DTensor


@functools.cache
def fsdp_module_type() -> type[FSDPModule]:
    """Return the class of modules after `fully_shard`, which is imported only here."""
    try:
        from torch.distributed.fsdp import FSDPModule  # from 2.6 on
    except ImportError:
        from torch.distributed._composable.fsdp import FSDPModule  # type: ignore[attr-defined]
    return FSDPModule
