"""Repeating a training step for a probe, without side effects."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_CONTAINERS = (list, set, deque, dict, defaultdict, OrderedDict)
_OF_MODULES = vars(nn.Module()).keys()  # parameters, buffers, submodules, hooks

Batch = TypeVar("Batch")


@contextmanager
def undone(
    module: nn.Module, *owners: object, without: tuple[tuple[object, str], ...]
) -> Iterator[None]:
    """Disable some methods, and restore buffers and attributes afterwards.

    Buffers get back their values. Assignments to attributes of the owners are undone, and tensors,
    lists, sets and dicts among them are copies meanwhile. Other side effects are not undone, such
    as those on items of a list, files and loggers.

    Args:
        module: The module whose buffers are restored, with its submodules.
        owners: The objects whose attributes are restored.
        without: Owners, each with the name of a method that is a no-op meanwhile.
    """
    buffers = [
        (held, name, buffer, buffer.detach().clone())
        for held in (submodule._buffers for submodule in module.modules())
        for name, buffer in held.items()
        if buffer is not None
    ]
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners]
    try:
        for held, before in attributes:
            held.update({k: _copied(v) for k, v in before.items() if k not in _OF_MODULES})
        for owner, name in without:
            vars(owner)[name] = _nothing
        yield
    finally:
        for held, before in attributes:
            for name in held.keys() - before.keys():
                del held[name]
            held.update(before)
        with torch.no_grad():
            for held, name, buffer, value in buffers:
                held[name] = buffer
                buffer.copy_(value)


def with_own_container(batch: Batch) -> Batch:
    """Return a shallow copy of a list or mapping, from which items may be removed."""
    return copy.copy(batch) if isinstance(batch, (list, MutableMapping)) else batch


def _copied(value: Any) -> Any:
    """Return a copy of an attribute that may be changed; its items are shared."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) not in _CONTAINERS:
        return value
    copied = copy.copy(value)
    if isinstance(copied, dict):
        copied.update({key: _copied(item) for key, item in copied.items()})
    return copied


def _nothing(*_: object, **__: object) -> None:
    """Replace a disabled method."""
