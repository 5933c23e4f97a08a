"""Having the base take in the gradients without moving, or standing in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        or (own_step is not None and not hasattr(own_step, "_wrapped_by_lr_sched"))
        or getattr(base, "grad_scale", None) is not None
        or getattr(base, "found_inf", None) is not None
        or any(group.get("differentiable") for group in base.param_groups)
    )


def mark_stepped(base: Optimizer) -> None:
    """Tell a scheduler that was built on the base, and watches its step, that there was one.

    Args:
        base: The optimizer.
    """
    if "step" in vars(base):
        base._opt_called = True  # type: ignore[attr-defined]
