"""The choice of the engine for a base optimizer."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.engine.passes import Engine
from momo_wrap.fast.engine import CompiledEngine, UpdatingEngine
from momo_wrap.fast.stepping import SteppingEngine
from momo_wrap.fast.updates import UPDATES

# With fewer parameters, compiling takes longer than it saves in thousands of steps.
_WORTHWHILE_ELEMENTS = 2**24
# With fewer parameters, expecting θ costs more than it saves.
_WORTH_FORESEEING = 2**20
_HOST = {"cpu"}
_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def choose_engine(
    compiled: bool | Literal["auto"], base: Optimizer, adapter: object, params: Sequence[Tensor]
) -> type[Engine]:
    """Return the engine for a base optimizer.

    Args:
        compiled: Whether to compile; "auto": if it is sure to work and to be faster.
        base: The optimizer.
        adapter: The adapter of the base.
        params: The parameters that can move.
    """
    update = UPDATES.get((type(base), type(adapter)))
    devices = {param.device.type for param in params}
    if update is None or (not compiled and devices - _HOST):
        return Engine
    if compiled is True:
        return CompiledEngine
    # Counted first, to keep the cost low for many small parameters.
    elements = sum(param.numel() for param in params)
    if compiled and elements >= _WORTHWHILE_ELEMENTS and all(map(_has_compiler, devices)):
        return CompiledEngine
    if devices - _HOST:
        return Engine
    # On the CPU a base loops over tensors, with a fused kernel or with many operations.
    fused = [bool(group.get("fused")) for group in base.param_groups]
    # In lower precision the base rounds at other places, which the steps must match.
    is_full = all(param.dtype in _FULL for param in params)
    if all(fused) and update.bounds_moves and elements >= _WORTH_FORESEEING:
        return SteppingEngine
    updates = compiled and update.pays_uncompiled and not any(fused) and is_full
    return UpdatingEngine if updates else Engine


@functools.cache
def _has_compiler(device: str) -> bool:
    """Return whether `torch.compile` has what it needs for a type of device."""
    if device == "cuda":
        return importlib.util.find_spec("triton") is not None
    names = (*os.environ.get("CXX", "g++").split()[:1], "clang++", "cl")
    return device == "cpu" and any(shutil.which(name) for name in names)
