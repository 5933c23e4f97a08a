"""Loading a state dict wholly or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter
from momo_wrap.adapters.proposal import GRAD_AVG_KEY
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.joint import members
from momo_wrap.scalars import PREFIX


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
def restored_on_failure(base: Optimizer) -> Iterator[None]:
    """Put groups and state of an optimizer back if what is done with it raises.

    Args:
        base: An optimizer whose `load_state_dict` makes new groups and a new state, as torch's do.
    """
    before = [(member, member.state, member.param_groups) for member in members(base)]
    try:
        yield
    except BaseException:
        for member, state, groups in before:
            member.state, member.param_groups = state, groups
        raise


def load(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load a state dict into the base, and say what is wrong where the base only stumbles.

    Args:
        base: The optimizer.
        state_dict: The state dict.

    Raises:
        ValueError: The base can't find in it what it looks for.
    """
    try:
        base.load_state_dict(state_dict)
    except LookupError as error:
        raise ValueError(
            f"The state dict is not one of {type(base).__name__}, which looked for {error} in it. "
            "Load it into an optimizer of the class that saved it."
        ) from error


def check_loaded(base: Optimizer, adapter: Adapter) -> None:
    """Refuse a state that the base can't go on from.

    Args:
        base: The optimizer, with the state that it has now.
        adapter: The adapter that serves it.

    Raises:
        ValueError: Settings are missing, or tensors do not belong to their parameters.
    """
    index = 0
    for optimizer, its_adapter in adapter.parts(base):
        for group in optimizer.param_groups:
            _check_settings(index, group, optimizer)
            for position, param in enumerate(group["params"]):
                entry = optimizer.state.get(param)
                if isinstance(entry, dict):
                    reads = isinstance(its_adapter, ReadingAdapter)
                    _check_entry(f"parameter {position} of group {index}", param, entry, reads)
            index += 1


def _check_settings(index: int, group: dict[str, Any], optimizer: Optimizer) -> None:
    # torch adds the last one to the defaults of copies that do not have it.
    missing = sorted(optimizer.defaults.keys() - group.keys() - {"differentiable"})
    if missing:
        raise ValueError(
            f"Group {index} has no {missing}, so the state dict is not one of "
            f"{type(optimizer).__name__}. Load it into an optimizer of the class that saved it."
        )
    for name, value in group.items():
        if name.startswith(PREFIX) and not _is_scalar(value):
            found = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"Group {index} has {name}={found}, expected a number. The state dict is damaged; "
                f"take an older one, or remove the keys that start with {PREFIX!r} to start the "
                "model of the loss afresh."
            )


def _is_scalar(value: object) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, (int, float))


def _check_entry(where: str, param: Tensor, entry: dict[str, Any], reads: bool) -> None:
    for name, value in entry.items():
        of_param = name == GRAD_AVG_KEY or (reads and isinstance(value, Tensor) and value.dim() > 0)
        if not of_param:
            continue
        shape = getattr(value, "shape", None)
        if shape != param.shape:
            found = "none" if shape is None else list(shape)
            raise ValueError(
                f"The state of {where} has {name!r} of shape {found}, but the parameter has shape "
                f"{list(param.shape)}. Load the state dict of an optimizer of the same parameters, "
                "in the same order."
            )
