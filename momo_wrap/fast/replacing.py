"""Whether `base.step()` may be replaced: it is not hooked and not patched."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch
from torch.optim import Optimizer

from momo_wrap.engine.compat import watched_step

_TORCH = os.path.dirname(torch.__file__) + os.sep


def is_plain(base: Optimizer) -> bool:
    """Return whether `base.step()` is that of its class: no hook, no patch, no gradient scaling."""
    own_step = vars(base).get("step")
    # A scheduler's patch of the step only counts steps.
    watched = watched_step(own_step) is type(base).step
    is_own = own_step is None or (watched and hasattr(own_step, "_wrapped_by_lr_sched"))
    return is_own and not (
        getattr(base, "_optimizer_step_pre_hooks", None)
        or getattr(base, "_optimizer_step_post_hooks", None)
        or getattr(base, "grad_scale", None) is not None
        or getattr(base, "found_inf", None) is not None
        or any(group.get("differentiable") for group in base.param_groups)
    )


def has_own_step(kind: type[Optimizer]) -> bool:
    """Return whether the step of a class, and each decorator of it, is its own or torch's.

    Otherwise it is patched.
    """
    return _is_own(kind.__module__, kind.step)


@functools.lru_cache(maxsize=64)
def _is_own(module: str, function: Any) -> bool:
    own = getattr(sys.modules.get(module), "__file__", None)
    while function is not None:
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        if file != own and not file.startswith(_TORCH):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def mark_stepped(base: Optimizer) -> None:
    """Mark a step as taken, for a scheduler that was built on the base and counts its steps."""
    if "step" in vars(base):
        base._opt_called = True  # type: ignore[attr-defined]
