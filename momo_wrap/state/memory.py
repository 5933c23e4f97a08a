"""The state of the wrapper between steps: the averages of its model, and the rule's memory.

Both are tensors of the wrapper. A state dict contains copies as entries of the parameter groups,
which every tool that saves an optimizer keeps. The base's groups have the names of these entries
with the value None, because some tools load only existing names. A load replaces None by a value,
which is imported once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter
from momo_wrap.engine.scalars import Scalar, as_scalar, comparable, numbers_of, vector
from momo_wrap.model import Averaging, Coefficients, Start, coefficients_of, first_weight

# The prefix of the entries in the groups.
PREFIX = "momo_"
# F, E, W, R of equations (1) and (2), in the order of the averages; S with clipped gradients.
_NAMES = ("loss_sum", "displacement", "loss_weight_sum", "weight_sum")
_CLIPPED = "clipped_weight_sum"
_RULE_PREFIX = f"{PREFIX}rule_"
_STEPS, _SCHEDULED, _REACH = f"{PREFIX}steps", f"{PREFIX}is_scheduled", f"{PREFIX}reach"
# Names of a rule's memory in files of version 0.1.0.
_FORMER = {"prediction": "foretold", "peak_lr": "last_lr"}
# In a state dict, for R of a group that starts with a history, and for a missing S or reach.
_HAS_HISTORY = _UNKNOWN = -1.0

Pairs: TypeAlias = Sequence[tuple[Optimizer, Adapter]]
_Owner: TypeAlias = tuple[Optimizer, Adapter, dict[str, Any]]
_About: TypeAlias = tuple[Tensor, dict[str, Any]]


class Memory:
    """The averages of all parameter groups, and the memory of the step rule."""

    reach: Tensor | None  # see `momo_wrap.engine.ahead`

    def __init__(self, initial: Mapping[str, float], like: Tensor) -> None:
        self.averages = torch.zeros(4, 0, device=like.device, dtype=like.dtype)  # F, E, W, R
        self.starts: list[Start] = []  # what each group's averages contain
        self.steps = 0  # the number taken
        self.is_scheduled = False  # whether a schedule sets the learning rates
        self.rates: Sequence[Scalar] = ()  # those of the last step
        self._owners: list[_Owner] = []
        self._about: list[_About | None] = []
        self._coefficients: tuple[object, Coefficients] | None = None
        self._keeping: list[int] = []  # groups whose adapter keeps averages
        self.start_rule(initial)

    def start_rule(self, initial: Mapping[str, float]) -> None:
        """Reset the rule's memory to the names and values before a first step."""
        self._initial, self.reach = dict(initial), None
        self._hold_rule(self.averages.new_tensor(list(self._initial.values())))
        if self._owners:
            self._mark()

    def _hold_rule(self, values: Tensor) -> None:
        """Make the rule's memory views of one tensor."""
        self._values = values
        self.rule = dict(zip(self._initial, values.unbind(), strict=True))

    def follow_clipping(self) -> None:
        """Add S, which equals R until a gradient is clipped."""
        if len(self.averages) == len(_NAMES):
            self.averages = torch.cat([self.averages, self.averages[3:]])

    def _follow_rates(self, rates: Sequence[Scalar]) -> None:
        """Update whether a schedule sets the learning rates, from those of a new step."""
        initial = [group.get("initial_lr") for _, _, group in self._owners]
        pairs = [*zip(rates, initial, strict=True)]
        if len(rates) == len(self.rates):
            pairs += [*zip(rates, self.rates, strict=True)]
        self.is_scheduled |= any(
            isinstance(now, float | int) and isinstance(then, float | int) and now != then
            for now, then in pairs
        )
        self.rates = rates

    def write(self, averages: Tensor, rule: Mapping[str, Tensor], reach: Tensor | None) -> None:
        """Store the results of a step: new averages, and the rule's memory, which may be empty."""
        self.steps += 1
        self.reach = reach
        self.averages.copy_(averages)
        if rule:
            self._values.copy_(torch.stack([rule[name] for name in self._initial]))
        if self._coefficients is None:
            self.starts = [Start.RUNNING] * len(self.starts)
        for i, about in enumerate(self._about):
            if about is None:
                self._note(i, [p for p in self._owners[i][2]["params"] if p.grad is not None][:1])
            elif self._owners[i][0].state.get(about[0]) is not about[1]:
                self._note(i, [about[0]])

    def prepare(self, pairs: Pairs, like: Tensor, rates: Sequence[Scalar] | None = None) -> None:
        """Follow the current groups, and restart those that have lost their buffers.

        `like` has the device and dtype of the scalars, `rates` are the learning rates of a step.
        """
        if (self.averages.device, self.averages.dtype) != (like.device, like.dtype):
            self.averages, self._coefficients = self.averages.to(like), None
            self._hold_rule(self._values.to(like))
        groups = [group for base, _ in pairs for group in base.param_groups]
        known = [group for _, _, group in self._owners]
        if len(groups) != len(known) or not all(map(is_, groups, known)):
            self._take_groups(pairs)
        if rates is not None and rates is not self.rates:
            self._follow_rates(rates)
        lost = []
        noted = len(self._about) - self._about.count(None)
        for i, about in enumerate(self._about):
            if about is not None:
                now = self._owners[i][0].state.get(about[0])
                if (now is not about[1] or not now) and self._is_lost(i, *about):
                    lost.append(i)
        for i in self._keeping:
            base, adapter, group = self._owners[i]
            if self._about[i] is not None and i not in lost:
                lost += [i] * adapter.has_lost_average(base, group)
        if lost:
            self._restart(lost if len(lost) < noted else range(len(groups)))

    def _take_groups(self, pairs: Pairs) -> None:
        """Follow the groups: known ones keep their averages, at any position."""
        owners = [(base, adapter, g) for base, adapter in pairs for g in base.param_groups]
        places = {id(group): i for i, (_, _, group) in enumerate(self._owners)}
        # A copy of a known group has the same parameters, and our entries without values.
        copied = {tuple(map(id, g["params"])): i for i, (_, _, g) in enumerate(self._owners)}
        kept = [places.get(id(group)) for _, _, group in owners]
        for i, (_, _, group) in enumerate(owners):
            if kept[i] is None and group.get(f"{PREFIX}weight_sum", ...) is None:
                kept[i] = copied.get(tuple(map(id, group["params"])))
        averages = self.averages.new_zeros(len(self.averages), len(owners))
        for i, old in enumerate(kept):
            if old is not None:
                averages[:, i] = self.averages[:, old]
        self.starts = [Start.FRESH if old is None else self.starts[old] for old in kept]
        self._about = [None if old is None else self._about[old] for old in kept]
        self.averages, self._coefficients, self._owners = averages, None, owners
        self._keeping = [i for i, owner in enumerate(owners) if owner[1].keeps_averages]
        new = [i for i, old in enumerate(kept) if old is None]
        self._restart([i for i in new if not self._import(i)])
        for name, own in self.rule.items():
            former = owners[0][2].get(_RULE_PREFIX + _FORMER.get(name, name))
            value = owners[0][2].get(_RULE_PREFIX + name, former)
            if value is not None:
                own.copy_(as_scalar(value, own))
        self.steps = int(owners[0][2].get(_STEPS) or self.steps)
        self.is_scheduled |= bool(owners[0][2].get(_SCHEDULED))
        reach = owners[0][2].get(_REACH)
        if reach is not None and float(reach) >= 0:
            self.reach = as_scalar(reach, self.averages)
        self._mark()

    def _restart(self, indices: Sequence[int]) -> None:
        """Restart the averages of some groups."""
        running = [i for i in self._running() if i not in indices]
        for i in indices:
            base, adapter, group = self._owners[i]
            self.averages[:, i] = 0.0
            self._about[i] = None
            self.starts[i] = Start.JOINED if running else Start.FRESH
            if adapter.has_history(base, group):
                self.starts[i] = Start.HISTORY
                self._note(i, group["params"])
            elif running:
                self._join(i, running[0])
        if indices:
            self._coefficients = None
        if indices and len(indices) == len(self._owners):
            self.start_rule(self._initial)

    def _running(self) -> list[int]:
        return [i for i, start in enumerate(self.starts) if start is Start.RUNNING]

    def _join(self, index: int, other: int) -> None:
        """Give a joining group the losses of another one."""
        self.averages[:3:2, index] = self.averages[:3:2, other]

    def _is_lost(self, index: int, param: Tensor, entry: dict[str, Any]) -> bool:
        """Return whether the state behind the averages of a group is gone or was replaced."""
        base, _, group = self._owners[index]
        now = base.state.get(param)
        others = [p for p in group["params"] if p is not param and base.state.get(p)]
        if not now or not any(p is param for p in group["params"]):
            # A single parameter may have left, or its state been reset.
            self._note(index, others)
            return not others
        tensors = [value for value in entry.values() if isinstance(value, Tensor)]
        self._note(index, [param])
        return bool(tensors) and not any(value is t for value in now.values() for t in tensors)

    def _note(self, index: int, params: Sequence[Tensor]) -> None:
        """Store a state behind the averages of a group: that of one of the parameters."""
        state = self._owners[index][0].state
        found = [(param, entry) for param in params if (entry := state.get(param))]
        self._about[index] = found[0] if found and isinstance(found[0][1], dict) else None

    def entries(self) -> list[dict[str, Any]]:
        """Return everything as numbers, for the groups of a state dict.

        They are read on the host in two transfers; on the meta device they stay tensors.
        """
        averages = self.averages.clone()
        for i, start in enumerate(self.starts):
            if start is Start.HISTORY:
                averages[3, i] = _HAS_HISTORY
        names = [PREFIX + name for name in (*_NAMES, _CLIPPED)]
        columns = [[*own, _UNKNOWN] for own in numbers_of(averages.t())]
        entries = [dict(zip(names, own, strict=False)) for own in columns]
        rule = zip(self._initial, numbers_of(self._values), strict=True)
        entries[0].update({_RULE_PREFIX + name: value for name, value in rule})
        (reach,) = [_UNKNOWN] if self.reach is None else numbers_of(self.reach.reshape(1))
        entries[0].update({_STEPS: self.steps, _SCHEDULED: int(self.is_scheduled), _REACH: reach})
        return entries

    def weight_sums(self, first: int, averagings: Sequence[Averaging]) -> Tensor:
        """Return R_k of some groups, from the index of the first on, shape [groups]."""
        starts = self.starts[first : first + len(averagings)]
        weights = [first_weight(*pair) for pair in zip(averagings, starts, strict=True)]
        decay = vector([averaging.decay for averaging in averagings], self.averages)
        last = self.averages[3].narrow(0, first, len(averagings))
        return torch.addcmul(vector(weights, self.averages), last, decay)

    def coefficients(self, averagings: Sequence[Averaging]) -> Coefficients:
        """Return the coefficients of the model, cached until something changes."""
        if Start.JOINED in self.starts:
            running = self._running()
            for i, start in enumerate(self.starts):
                # A joining group takes the losses of a group with the same averaging, if there is
                # one.
                alike = [j for j in running if _alike(averagings[j], averagings[i])]
                if start is Start.JOINED and alike:
                    self._join(i, alike[0])
        key = list(averagings)
        if self._coefficients is not None and self._coefficients[0] == key:
            return self._coefficients[1]
        made = coefficients_of(averagings, self.starts, self.averages)
        # Tensors may change in place, which the key does not show.
        is_constant = not any(isinstance(v, Tensor) for own in key for v in vars(own).values())
        runs = self.starts.count(Start.RUNNING) == len(self.starts)
        self._coefficients = (key, made) if runs and is_constant else None
        return made

    def _import(self, index: int) -> bool:
        """Import the values of a state dict; return whether it had all averages of a group."""
        base, adapter, group = self._owners[index]
        values: dict[str, Any] = {name: group.get(PREFIX + name) for name in _NAMES}
        if values["loss_weight_sum"] is None:  # as for all groups from the start
            values["loss_weight_sum"] = values["weight_sum"]
        is_there = all(value is not None for value in values.values())
        if not is_there or adapter.has_lost_average(base, group):
            return False
        # Read on the device that they were loaded to, before they go to that of the scalars.
        loss_weight, weight = float(values["loss_weight_sum"]), float(values["weight_sum"])
        if weight < 0:
            self.starts[index] = Start.HISTORY
        else:
            clipped = group.get(PREFIX + _CLIPPED)
            if clipped is None or float(clipped) < 0:
                clipped = values["weight_sum"]
            else:
                self.follow_clipping()
            found = [*values.values(), clipped]
            self.averages[:, index] = vector(found[: len(self.averages)], self.averages)
            self.starts[index] = Start.RUNNING
            if weight == 0:
                self.starts[index] = Start.JOINED if loss_weight > 0 else Start.FRESH
        self._note(index, group["params"])
        return True

    def _mark(self) -> None:
        """Write the names into the groups, without values."""
        for _, _, group in self._owners:
            group.update({PREFIX + name: None for name in (*_NAMES, _CLIPPED)})
        _, _, first = self._owners[0]
        for key in [key for key in first if key.startswith(_RULE_PREFIX)]:
            del first[key]
        first.update(dict.fromkeys((_STEPS, _SCHEDULED, _REACH)))
        first.update({_RULE_PREFIX + name: None for name in self._initial})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rule": None, "_coefficients": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold_rule(self._values)


def _alike(one: Averaging, other: Averaging) -> bool:
    """Return whether two groups give losses the same weights."""
    pairs = ((one.decay, other.decay), (one.weight, other.weight))
    return all(comparable(left) == comparable(right) for left, right in pairs)
