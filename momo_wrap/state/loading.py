"""Loading a state dict atomically."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from momo_wrap.adapters.base import Adapter
from momo_wrap.joint import members
from momo_wrap.state.memory import PREFIX


def check_state_dict(state_dict: object, base: Optimizer) -> None:
    """Raise for anything not shaped like a state dict, in torch's format or in the base's."""
    found = type(state_dict).__name__
    if isinstance(state_dict, Mapping):
        state, groups = state_dict.get("state"), state_dict.get("param_groups")
        if isinstance(state, Mapping) and _is_groups(groups):
            return
        if state_dict.keys() == base.state_dict().keys() != {"state", "param_groups"}:
            return
        found = f"one with the keys {sorted(map(str, state_dict))}"
    raise TypeError(
        "load_state_dict expects a dict with 'state', a dict, and 'param_groups', a list of dicts "
        f"with 'params', got {found}. Load what optimizer.state_dict() returned."
    )


def _is_groups(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple))
        for group in value
    )


@contextmanager
def restored_on_failure(optimizer: Optimizer) -> Iterator[None]:
    """Restore an optimizer if the body of the `with` statement raises.

    Restores attributes and containers of the optimizer, and of the optimizers, schedulers and
    similar objects inside. Tensors are not copied: the body must replace them, like torch's
    `load_state_dict`.
    """
    contents = _contents(optimizer)
    try:
        yield
    except BaseException:
        for container, content in contents:
            container.clear()
            is_keyed = isinstance(container, (dict, set))
            (container.update if is_keyed else container.extend)(content)
        raise


def _contents(root: object) -> list[tuple[Any, Collection[Any]]]:
    """Return all containers of an optimizer's state, with shallow copies."""
    found: dict[int, tuple[Any, Collection[Any]]] = {}
    remaining = [root]
    while remaining:
        value = remaining.pop()
        if isinstance(value, tuple):
            remaining += value
            continue
        if _can_load(value):
            value = vars(value)
        if isinstance(value, (dict, list, set, deque)) and id(value) not in found:
            found[id(value)] = value, copy.copy(value)
            remaining += value.values() if isinstance(value, dict) else value
    return list(found.values())


def _can_load(value: object) -> bool:
    """Return whether a value is an optimizer, a scheduler or a similar object."""
    if isinstance(value, (type, torch.nn.Module)):
        return False
    return hasattr(type(value), "load_state_dict") and hasattr(value, "__dict__")


def load(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load a state dict into the base, with clear errors where the base raises unclear ones."""
    # Not all defaults: those of wrapping optimizers need not be in the groups.
    needed = [
        (type(optimizer).__name__, group.keys() & optimizer.defaults.keys())
        for optimizer in members(base)
        for group in optimizer.param_groups
    ]
    # A step can't update inference tensors.
    state_dict = tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, state_dict)
    try:
        base.load_state_dict(state_dict)
    except LookupError as error:
        raise ValueError(
            f"The state dict is not one of {type(base).__name__}, which expected {error} in it. "
            "Load it into an optimizer of the class that saved it."
        ) from error
    pairs = zip(needed, base.param_groups, strict=True)
    for index, ((owner, names), group) in enumerate(pairs):
        missing = sorted(names - group.keys())
        if missing:
            raise ValueError(
                f"Group {index} has no {missing}, so the state dict is not one of {owner}. Load it "
                "into an optimizer of the class that saved it."
            )


def shown(base: Optimizer) -> str:
    """Return the repr of the base, without the wrapper's entries in its groups."""
    lines = repr(base).splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith(PREFIX))


def with_entries(state_dict: dict[str, Any], entries: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of a state dict with further entries, one mapping for each parameter group.

    The groups may be nested, as in state dicts of optimizers that wrap another.
    """
    copied = dict(state_dict)
    for name, value in state_dict.items():
        if name == "param_groups" and len(value) == len(entries):
            pairs = zip(value, entries, strict=True)
            copied[name] = [{**group, **more} for group, more in pairs]
        elif name != "state" and isinstance(value, dict):
            copied[name] = with_entries(value, entries)
    return copied


def check_loaded(pairs: Sequence[tuple[Optimizer, Adapter]]) -> None:
    """Raise for entries of the wrapper that are no numbers, and for tensors of other parameters."""
    owners = [(base, adapter, group) for base, adapter in pairs for group in base.param_groups]
    for index, (base, adapter, group) in enumerate(owners):
        for name, value in group.items():
            if name.startswith(PREFIX) and not _is_scalar(value):
                found = list(value.shape) if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"Group {index} has {name}={found}, expected a number. The state dict is "
                    f"damaged; load an older one, or remove the keys that start with {PREFIX!r} to "
                    "restart the model of the loss."
                )
        for position, param in enumerate(group["params"]):
            entry = base.state.get(param)
            if isinstance(entry, dict):
                adapter.check_entry(f"parameter {position} of group {index}", param, entry)


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, (int, float))  # None: no value
