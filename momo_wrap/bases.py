"""The base optimizers of a wrapper, each with its adapter and its engine, as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, BaseStep, maximizes
from momo_wrap.checks.arguments import Compiled
from momo_wrap.checks.groups import check_parameters, check_settings
from momo_wrap.distributed import Ranks
from momo_wrap.engine.ahead import Foreseen
from momo_wrap.engine.params import can_move
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar, as_scalar, largest
from momo_wrap.model import Averaging
from momo_wrap.probes import Before, before_step
from momo_wrap.rules import ModelStats, StepRule, WeightDecayForm, no_fraction


def _plain_engine(compiled: object, base: object, adapter: object, params: object) -> type[Engine]:
    """Return the engine without `momo_wrap.fast`, for any choice."""
    del compiled, base, adapter, params
    return Engine


try:
    from momo_wrap.fast import choose_engine
except ImportError:  # this subpackage is optional
    choose_engine = _plain_engine

# From the index of a base's first group, and how its groups average, to R_k of each.
WeightSums = Callable[[int, Sequence[Averaging]], Tensor]


class Bases:
    """The base optimizers of a wrapper.

    Args:
        bases, adapters: The optimizers, and an adapter for each.
        weight_sums: From the index of a parameter group, and how it and the following ones average
            at this step, to R_k of each, of shape [groups].

    Attributes:
        pairs: Each optimizer with its adapter.
        sign: -1 if the bases maximize, which is to minimize the negative.
        like: An empty tensor of the device and dtype of the scalars, set when a step is planned.
        largest_lr: The largest learning rate, 0-dim, likewise.
        rates: The learning rates of all groups; a new list if settings have changed.
        unknown: NaN, 0-dim, likewise.
        foresees: Whether any base can move parameters ahead of the sums, likewise.
    """

    like: Tensor
    largest_lr: Tensor
    unknown: Tensor
    rates: Sequence[Scalar]
    foresees: bool

    def __init__(
        self, bases: Iterable[Optimizer], adapters: Iterable[Adapter], weight_sums: WeightSums
    ) -> None:
        self.pairs = list(zip(bases, adapters, strict=True))
        self._weight_sums = weight_sums
        self._engines: list[Engine] = []
        self._plans: list[Plan] = []
        self._settings: list[int] = []
        self._movable: list[object] = []
        self._foresee: list[bool] = []
        self.check()

    def check(self) -> None:
        """Raise for invalid parameters and settings; reads settings that are tensors."""
        groups = [group for base, _ in self.pairs for group in base.param_groups]
        check_parameters(groups)
        self._movable = _movable(groups)
        check_settings(self.pairs, read_tensors=True)
        base, _ = self.pairs[0]
        self.sign = -1.0 if maximizes(base, base.param_groups[0]) else 1.0

    def forget(self) -> None:
        """Drop all plans."""
        self._engines = []

    def prepare(self, compiled: Compiled) -> None:
        """Plan a step, and raise for invalid settings and gradients.

        Args:
            compiled: Whether passes are compiled.

        Raises:
            TypeError: A gradient is not dense.
            ValueError: Settings are out of range or contradict each other.
        """
        if not self._engines:
            self._choose_engines(compiled)
        pairs = zip(self._engines, self.pairs, strict=True)
        plans = [engine.prepare(base.param_groups) for engine, (base, _) in pairs]
        settings = [engine.settings for engine in self._engines]
        if settings != self._settings or plans != self._plans:
            check_settings(self.pairs)
            groups = [group for base, _ in self.pairs for group in base.param_groups]
            if _movable(groups) != self._movable:
                check_parameters(groups)
                self._movable = _movable(groups)
                self._choose_engines(compiled)
                return self.prepare(compiled)
            self._note(plans, groups)
            self._settings = settings
        return None

    def _choose_engines(self, compiled: Compiled) -> None:
        """Create an engine for each base, without a plan."""
        self._engines, self._plans, self._settings = [], [], []
        for index, (base, adapter) in enumerate(self.pairs):
            params = [p for group in base.param_groups for p in group["params"]]
            params = [param for param in params if can_move(param) and not is_lazy(param)]
            engine = choose_engine(compiled, base, adapter, params)
            self._engines.append(engine(partial(self._weight_sums_of, index)))

    def _weight_sums_of(self, index: int, averagings: Sequence[Averaging]) -> Tensor:
        first = sum(len(base.param_groups) for base, _ in self.pairs[:index])
        return self._weight_sums(first, averagings)

    def _note(self, plans: list[Plan], groups: Sequence[Mapping[str, Any]]) -> None:
        """Update the values that depend on plans and settings."""
        self._plans = plans
        if len(plans) > 1:
            _share_template(plans)
            for engine in self._engines:
                engine.kept = {}
        self.like = plans[0].like
        on_host = self.like.device.type == "cpu"  # where reading a number is no synchronization
        self._foresee = [its.foresees and (on_host or its.corrects) for its in self._engines]
        self.foresees = any(self._foresee)
        self.rates = [1.0 if group.get("lr") is None else group["lr"] for group in groups]
        self.unknown = torch.full_like(self.like.new_empty(()), math.nan)
        self.largest_lr = largest(self.rates, self.like)
        base, _ = self.pairs[0]
        self.sign = -1.0 if maximizes(base, base.param_groups[0]) else 1.0

    def movable(self) -> list[tuple[Tensor, int, int, Tensor]]:
        """Return the parameters that may move in the planned step.

        Each with its group, its shards, and its `Adapter.moving`.
        """
        found, first = [], 0
        for plan, (base, adapter) in zip(self._plans, self.pairs, strict=True):
            for cell in (*plan.cells, *plan.others):
                group, shards = first + cell.group, cell.shards
                found += [(p, group, shards, adapter.moving(base, p)) for p in cell.params]
            first += plan.groups
        return found

    def observe(
        self,
        weight_decay_form: WeightDecayForm,
        theta: Tensor | None = None,
        reach: Tensor | None = None,
    ) -> BaseStep:
        """Update the state of the bases, and sum up what their steps would do.

        `theta` and `reach` are those of `Foreseen`.
        """
        steps: list[BaseStep] = []
        if theta is not None:
            groups = sum(plan.groups for plan in self._plans)
            given: object = theta  # by the user's rule
            if not (isinstance(given, Tensor) and tuple(given.shape) in ((), (groups,))):
                raise no_fraction("foresee", given, groups)
            theta = theta.to(self.like)
        try:
            for index, ((base, adapter), engine) in enumerate(
                zip(self.pairs, self._engines, strict=True)
            ):
                engine.has_stepped, foresees = False, self._foresee[index]
                engine.foreseen = self._foreseen(index, theta, reach) if foresees else None
                steps.append(adapter.observe(base, weight_decay_form, engine))
            return steps[0] if len(steps) == 1 else _JointStep(steps)
        except BaseException:
            for step in steps:
                step.withdraw()
            raise
        finally:
            for plan in self._plans:
                plan.grads = []  # frees them before the next step

    def seen(self, before: Before | None, probed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `ModelStats` has of a measurement of the last step, NaN without one."""
        if before is None or probed is None:
            return self.unknown, self.unknown, self.unknown
        return before.seen(probed)

    def look_ahead(
        self,
        rule: StepRule,
        early: tuple[Tensor, float, Sequence[Any]],
        memory: Mapping[str, Tensor],
        before: Before | None,
        group: Ranks,
    ) -> tuple[Before | None, Tensor | None]:
        """Return the saved values of a measured step, and its expected θ.

        Args:
            rule: The step rule.
            early: The loss of the model, the bound, and the fields of `ModelStats` for probes.
            memory: What the rule remembers.
            before: What was kept of the last step, which is not needed any more.
            group: The ranks of the step; where there are several, nothing is expected.
        """
        loss, bound, known = early
        stats = ModelStats.early(loss, self.unknown, bound, self.largest_lr, known)
        kept = before_step(rule, stats, self.movable, before)
        foresees = self.foresees and group is None
        return kept, rule.foresee(stats, memory) if foresees else None

    def update_state(self, compiled: Compiled, weight_decay_form: WeightDecayForm) -> None:
        """Update the state of the bases, and move nothing."""
        self.prepare(compiled)
        self.observe(weight_decay_form).apply(as_scalar(0.0, self.like))

    def _foreseen(self, index: int, theta: Tensor | None, reach: Tensor | None) -> Foreseen | None:
        """Return the `Foreseen` of the groups of one base."""
        if theta is not None and theta.dim():
            first = sum(plan.groups for plan in self._plans[:index])
            theta = theta.narrow(0, first, self._plans[index].groups)
        return None if theta is None else Foreseen(theta, reach)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_engines": [], "_plans": [], "_settings": []}


class _JointStep(BaseStep):
    """The steps of several bases under one model."""

    def __init__(self, steps: Sequence[BaseStep]) -> None:
        self._steps = steps
        self.averagings = [averaging for step in steps for averaging in step.averagings]
        rows = max(len(step.sums) for step in steps)
        self.sums = torch.cat([_complete(step.sums, rows) for step in steps], dim=1)
        if any(step.penalty is not None for step in steps):
            self.penalty = torch.cat([_or_zeros(step.penalty, step) for step in steps])
            decays = [step.coupled_decay or [0.0] * len(step.averagings) for step in steps]
            self.coupled_decay = [decay for its in decays for decay in its]
        if any(step.offsets is not None for step in steps):
            self.offsets = torch.cat([_or_zeros(step.offsets, step) for step in steps])

    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters of all bases; see `BaseStep`."""
        own = [thetas] * len(self._steps)
        if thetas.dim():
            own = list(thetas.split([len(step.averagings) for step in self._steps]))
        moved = [step.apply(its) for step, its in zip(self._steps, own, strict=True)]
        reaches = [step.reach for step in self._steps if step.reach is not None]
        self.reach = torch.stack(reaches).amax() if reaches else None
        return torch.cat(moved)

    def withdraw(self) -> None:
        """Put back the parameters that any base has moved ahead; see `BaseStep`."""
        for step in self._steps:
            step.withdraw()


def _movable(groups: Sequence[Mapping[str, Any]]) -> list[object]:
    """Return a key of the parameters that can move, with their dtypes and devices."""
    params = [param for group in groups for param in group["params"]]
    params = [param for param in params if can_move(param) and not is_lazy(param)]
    return [(id(param), param.dtype, param.device) for param in params]


def _share_template(plans: Sequence[Plan]) -> None:
    """Give the scalars of several bases one device and dtype."""
    likes = [plan.like for plan in plans]
    device = next((like.device for like in likes if like.device.type != "cpu"), likes[0].device)
    wide = any(like.dtype is torch.float64 for like in likes)
    common = torch.empty(0, device=device, dtype=torch.float64 if wide else torch.float32)
    for plan in plans:
        plan.like = common


def _or_zeros(values: Tensor | None, step: BaseStep) -> Tensor:
    """Return values of each group of a step; zeros if they are None."""
    return torch.zeros_like(step.sums[0]) if values is None else values


def _complete(sums: Tensor, rows: int) -> Tensor:
    """Return sums with the given number of rows."""
    return sums if len(sums) == rows else torch.cat([sums, sums[:1], torch.zeros_like(sums)])
