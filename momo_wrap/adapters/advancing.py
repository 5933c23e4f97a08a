"""Having the base take in the gradients without moving, or standing in for it.

While `torch.compile` traces a step, none of its calls may write to a parameter group: Dynamo, the
tracer, lets such a group come out with `capturable=True` (`torch._dynamo.variables.optimizer`). So
the base's step is then taken on a stand-in that has copies of the groups.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from momo_wrap.adapters.base import ParamGroup

_AT_REST = {"lr": 0.0, "weight_decay": 0.0}
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


@contextmanager
def at_rest(groups: list[ParamGroup], settings: list[dict[str, Any]]) -> Iterator[None]:
    """Set learning rate and weight decay to 0, and put back the very objects that were there.

    Args:
        groups: The base's parameter groups.
        settings: Further settings for each group.
    """
    saved = [dict(group) for group in groups]
    try:
        for group, changes in zip(groups, settings, strict=True):
            group.update(changes, **_AT_REST)
        yield
    finally:
        for group, before, changes in zip(groups, saved, settings, strict=True):
            for key in {**changes, **_AT_REST}:
                if key in before:
                    group[key] = before[key]
                else:
                    group.pop(key, None)


def is_plain(base: Optimizer) -> bool:
    """Return whether a step of the base does nothing that it would not do by itself.

    Args:
        base: The optimizer.

    Returns:
        Whether there is no hook, no step that was patched in, and no scaling of gradients.
    """
    own_step = vars(base).get("step")
    return not (
        any(getattr(base, name, None) for name in _HOOKS)
        or any(getattr(torch_optimizer, name, None) for name in _GLOBAL_HOOKS)
        or (own_step is not None and not _is_watched_only(base, own_step))
        or getattr(base, "grad_scale", None) is not None
        or getattr(base, "found_inf", None) is not None
        or any(group.get("differentiable") for group in base.param_groups)
    )


_TORCH = os.path.dirname(torch.__file__) + os.sep


def has_own_step(kind: type[Optimizer]) -> bool:
    """Return whether the step of a class, and all that is wrapped around it, is its own or torch's.

    Args:
        kind: A class of optimizers, whose step somebody may have replaced.
    """
    own = getattr(sys.modules.get(kind.__module__), "__file__", None)
    function: Any = kind.step
    while function is not None:
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        if file != own and not file.startswith(_TORCH):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _is_watched_only(base: Optimizer, own_step: Any) -> bool:
    """Return whether a step is that of the class, and a scheduler's wrapper around it."""
    watched = hasattr(own_step, "_wrapped_by_lr_sched")
    return watched and getattr(own_step, "__wrapped__", None) is type(base).step


def mark_stepped(base: Optimizer) -> None:
    """Tell a scheduler that was built on the base, and watches its step, that there was one.

    Args:
        base: The optimizer.
    """
    if "step" in vars(base):
        base._opt_called = True  # type: ignore[attr-defined]


def is_fused(base: Optimizer) -> bool:
    """Return whether some groups of a base take their steps in a single kernel.

    Args:
        base: The optimizer.
    """
    return any(group.get("fused") for group in base.param_groups)


def can_take_traced_step(base: Optimizer) -> bool:
    """Return whether `take_traced_step` can take a base's step, once there is a state.

    Args:
        base: The optimizer.

    Returns:
        True for the optimizers of torch itself, unless somebody watches or has replaced the step.
    """
    is_of_torch = type(base).__module__.startswith("torch.optim.") and has_own_step(type(base))
    return is_of_torch and "step" not in vars(base) and is_plain(base)


def take_traced_step(base: Optimizer, settings: list[dict[str, Any]]) -> None:
    """Take a base's step at rest while it is being traced.

    Its own `step` breaks the graph twice, on purpose, to enter and to leave `no_grad`, which the
    wrapper has done already. The function below that does not.

    Args:
        base: The optimizer.
        settings: Further settings for each group.
    """
    plain: Callable[[Any], Any] = inspect.unwrap(type(base).step)
    pairs = zip(base.param_groups, settings, strict=True)
    plain(_StandIn(base, [{**group, **its, **_AT_REST} for group, its in pairs]))


class _StandIn:
    """A base to its own step, but for the settings of the groups."""

    def __init__(self, base: Optimizer, groups: Sequence[ParamGroup]) -> None:
        self._base, self.param_groups = base, groups

    def _init_group(self, group: ParamGroup, *columns: Any) -> Any:
        # Dynamo runs this one for real, with the very group.
        own = next(
            own
            for own, other in zip(self._base.param_groups, self.param_groups, strict=True)
            if other is group
        )
        initialise: Any = self._base._init_group  # type: ignore[attr-defined]
        return initialise(own, *columns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)
