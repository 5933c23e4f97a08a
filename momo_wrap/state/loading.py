"""Loading a state dict atomically."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from momo_wrap.adapters.base import Adapter
from momo_wrap.joint import members
from momo_wrap.state.memory import PREFIX


def check_state_dict(state_dict: object, base: Optimizer) -> None:
    """Refuse what is no state dict of an optimizer.

    Args:
        state_dict: What is to be loaded.
        base: The optimizer; some give theirs another form.

    Raises:
        TypeError: It has not the form of one.
    """
    found = type(state_dict).__name__
    if isinstance(state_dict, Mapping):
        if _is_dict(state_dict.get("state")) and _is_groups(state_dict.get("param_groups")):
            return
        own = base.state_dict().keys()
        if state_dict.keys() == own != {"state", "param_groups"}:
            return
        found = f"one with the keys {sorted(map(str, state_dict))}"
    raise TypeError(
        "load_state_dict expects a dict with 'state', a dict, and 'param_groups', a list of dicts "
        f"with 'params', got {found}. Load what optimizer.state_dict() returned."
    )


def _is_dict(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_groups(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple))
        for group in value
    )


@contextmanager
def restored_on_failure(optimizer: Optimizer) -> Iterator[None]:
    """Put an optimizer back to what it was if what is done with it raises.

    Covers attributes and containers of the optimizer, and those of the optimizers, schedulers and
    the like within it. Tensors are not copied: what is done must replace them, as all
    `load_state_dict` of torch do.

    Args:
        optimizer: The optimizer.
    """
    contents = _contents(optimizer)
    try:
        yield
    except BaseException:
        for container, content in contents:
            _refill(container, content)
        raise


_Container: TypeAlias = "dict[Any, Any] | list[Any] | set[Any] | deque[Any]"


def _contents(root: object) -> list[tuple[_Container, Collection[Any]]]:
    """Return all containers that an optimizer's state is made of, with shallow copies."""
    found: dict[int, tuple[_Container, Collection[Any]]] = {}
    remaining = [root]
    while remaining:
        value = remaining.pop()
        if isinstance(value, tuple):
            remaining += value
            continue
        if _can_load(value):
            value = vars(value)
        if not isinstance(value, (dict, list, set, deque)) or id(value) in found:
            continue
        found[id(value)] = value, copy.copy(value)
        remaining += value.values() if isinstance(value, dict) else value
    return list(found.values())


def _can_load(value: object) -> bool:
    """Return whether something is an optimizer, a scheduler or the like within one."""
    if isinstance(value, (type, torch.nn.Module)):
        return False
    return hasattr(type(value), "load_state_dict") and hasattr(value, "__dict__")


def _refill(container: _Container, content: Collection[Any]) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def load(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load a state dict into the base, and say what is wrong where the base only stumbles.

    Args:
        base: The optimizer.
        state_dict: The state dict. Tensors that were made in `torch.inference_mode` are copied,
            because a step could not update them.

    Raises:
        ValueError: The base can't find in it what it looks for, or groups have lost settings.
    """
    # Not all defaults: those of wrapping optimizers need not be in the groups.
    needed = [
        group.keys() & optimizer.defaults.keys()
        for optimizer in members(base)
        for group in optimizer.param_groups
    ]
    try:
        base.load_state_dict(normal_tensors(state_dict))
    except LookupError as error:
        raise ValueError(
            f"The state dict is not one of {type(base).__name__}, which looked for {error} in it. "
            "Load it into an optimizer of the class that saved it."
        ) from error
    owners = [optimizer for optimizer in members(base) for _ in optimizer.param_groups]
    for index, (names, group) in enumerate(zip(needed, base.param_groups, strict=True)):
        missing = sorted(names - group.keys())
        if missing:
            raise ValueError(
                f"Group {index} has no {missing}, so the state dict is not one of "
                f"{type(owners[index]).__name__}. Load it into an optimizer of the class that "
                "saved it."
            )


def normal_tensors(value: Any) -> Any:
    """Return nested containers with copies of the tensors that were made in inference mode.

    Args:
        value: A state dict, say.
    """
    return tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, value)


def with_entries(state_dict: dict[str, Any], entries: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of a state dict with further entries in its parameter groups.

    Args:
        state_dict: The state dict, which is not changed. Its groups may be further within, as in
            those of optimizers that wrap another.
        entries: What each group gets.
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
    """Refuse a state that the base can't go on from.

    Args:
        pairs: The optimizers, with the state that they have now, each with its adapter.

    Raises:
        ValueError: The wrapper's scalars are no numbers, or tensors do not belong to their
            parameters.
    """
    index = 0
    for optimizer, adapter in pairs:
        for group in optimizer.param_groups:
            _check_scalars(index, group)
            for position, param in enumerate(group["params"]):
                entry = optimizer.state.get(param)
                if isinstance(entry, dict):
                    adapter.check_entry(f"parameter {position} of group {index}", param, entry)
            index += 1


def _check_scalars(index: int, group: dict[str, Any]) -> None:
    for name, value in group.items():
        if name.startswith(PREFIX) and not _is_scalar(value):
            found = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"Group {index} has {name}={found}, expected a number. The state dict is damaged; "
                f"take an older one, or remove the keys that start with {PREFIX!r} to start the "
                "model of the loss afresh."
            )


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, (int, float))  # None: nothing was kept
