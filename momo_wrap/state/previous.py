"""The parameters before the last step in a state dict, if that step is yet to be measured.

They are entries of the optimizer state, so a resumed run measures the same as the saved one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, check_shape
from momo_wrap.distributed import shards
from momo_wrap.engine.blocks import real
from momo_wrap.engine.scalars import Scalar, as_scalar, numbers_of
from momo_wrap.probes import Before
from momo_wrap.state.memory import PREFIX

_PREVIOUS, _PREDICTED = f"{PREFIX}previous", f"{PREFIX}predicted"
_DECAY, _PROBE = f"{PREFIX}decay", f"{PREFIX}wants_probe"

Groups = Sequence[Mapping[str, Any]]


@torch.no_grad()
def with_previous(
    state_dict: dict[str, Any], groups: Groups, before: Before | None
) -> dict[str, Any]:
    """Return a copy of a state dict with the parameters before the last step, if they are kept."""
    saved = state_dict.get("param_groups")
    if before is None or "state" not in state_dict or saved is None or len(saved) != len(groups):
        return state_dict
    places = {
        id(param): (name, index)
        for index, (group, its) in enumerate(zip(groups, saved, strict=True))
        for param, name in zip(group["params"], its["params"], strict=True)
    }
    state = dict(state_dict["state"])
    decays: list[Scalar] = [0.0] * len(saved)
    for (param, decay, _), previous in zip(before.params, before.previous, strict=True):
        if id(param) not in places:  # it was removed
            continue
        copy = param.detach().clone()
        if real(copy).shape != previous.shape:  # the shape has changed
            return state_dict
        real(copy).copy_(previous)
        name, index = places[id(param)]
        state[name] = {**state.get(name, {}), _PREVIOUS: copy}
        decays[index] = float(decay)
    saved = [{**its, _DECAY: decay} for its, decay in zip(saved, decays, strict=True)]
    (predicted,) = numbers_of(before.predicted.reshape(1))
    saved[0].update({_PREDICTED: predicted, _PROBE: float(before.wants_probe)})
    return {**state_dict, "state": state, "param_groups": saved}


@torch.no_grad()
def take_previous(pairs: Sequence[tuple[Optimizer, Adapter]], like: Tensor) -> Before | None:
    """Remove from the bases the loaded entries of `with_previous`, and return their contents."""
    found: list[tuple[Tensor, Scalar, int]] = []
    moving: list[Tensor] = []
    values: list[Tensor] = []
    groups = [(base, adapter, group) for base, adapter in pairs for group in base.param_groups]
    for index, (base, adapter, group) in enumerate(groups):
        decay = group.pop(_DECAY, 0.0)
        for position, param in enumerate(group["params"]):
            entry = base.state.get(param)
            if not isinstance(entry, dict) or _PREVIOUS not in entry:
                continue
            where = f"parameter {position} of group {index}"
            check_shape(where, param, _PREVIOUS, entry[_PREVIOUS])
            values.append(real(entry.pop(_PREVIOUS)))
            found.append((param, decay, shards(param)))
            moving.append(adapter.moving(base, param))
            if not entry:
                del base.state[param]
    predicted, probe = (groups[0][2].pop(name, None) for name in (_PREDICTED, _PROBE))
    if not found or predicted is None:
        return None
    return Before.restored(found, moving, as_scalar(predicted, like), bool(probe), values)
