"""The parameters before the last step, where it is still to be measured, in a state dict.

They are entries of the parameters' states there, so that a resumed run measures what the saved one
does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import check_shape
from momo_wrap.distributed import shards
from momo_wrap.engine.blocks import real
from momo_wrap.engine.scalars import as_scalar
from momo_wrap.probes import Before
from momo_wrap.state.memory import PREFIX

_PREVIOUS, _PREDICTED = f"{PREFIX}previous", f"{PREFIX}predicted"
_DECAY, _PROBE = f"{PREFIX}decay", f"{PREFIX}wants_probe"

Groups = Sequence[Mapping[str, Any]]


@torch.no_grad()
def with_previous(
    state_dict: dict[str, Any], groups: Groups, before: Before | None
) -> dict[str, Any]:
    """Return a copy of a state dict with what is kept of the last step, if anything is."""
    saved = state_dict.get("param_groups")
    if before is None or saved is None or "state" not in state_dict:
        return state_dict
    names = {
        id(param): name
        for group, its in zip(groups, saved, strict=True)
        for param, name in zip(group["params"], its["params"], strict=True)
    }
    state = dict(state_dict["state"])
    for (param, _, _), previous in zip(before.params, before.previous, strict=True):
        copy = param.detach().clone()
        real(copy).copy_(previous)
        name = names[id(param)]
        state[name] = {**state.get(name, {}), _PREVIOUS: copy}
    decays = [{_DECAY: decay} for decay in before.decays] or [{}] * len(saved)
    saved = [{**its, **more} for its, more in zip(saved, decays, strict=True)]
    saved[0].update({_PREDICTED: before.predicted.clone(), _PROBE: float(before.wants_probe)})
    return {**state_dict, "state": state, "param_groups": saved}


@torch.no_grad()
def take_previous(base: Optimizer, like: Tensor) -> Before | None:
    """Take out of a base what `with_previous` put into the state dict that was loaded."""
    found: list[tuple[Tensor, int, int]] = []
    values: list[Tensor] = []
    for index, group in enumerate(base.param_groups):
        for position, param in enumerate(group["params"]):
            entry = base.state.get(param)
            if not isinstance(entry, dict) or _PREVIOUS not in entry:
                continue
            check_shape(
                f"parameter {position} of group {index}", param, _PREVIOUS, entry[_PREVIOUS]
            )
            values.append(real(entry.pop(_PREVIOUS)))
            found.append((param, index, shards(param)))
            if not entry:
                del base.state[param]
    predicted, probe = (base.param_groups[0].pop(name, None) for name in (_PREDICTED, _PROBE))
    decays = [group.pop(_DECAY, None) for group in base.param_groups]
    if not found or predicted is None:
        return None
    known = [] if any(decay is None for decay in decays) else decays
    before = Before(found, as_scalar(predicted, like), known, wants_probe=bool(probe))
    torch._foreach_copy_(before.previous, values)
    return before
