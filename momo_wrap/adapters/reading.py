"""Adapters that read the momentum buffer and the preconditioner out of the base's own state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.advancing import (
    at_rest,
    can_take_traced_step,
    has_own_step,
    is_fused,
    is_plain,
    mark_stepped,
    take_traced_step,
)
from momo_wrap.adapters.base import Adapter, Observation, ParamGroup, State, check_shape
from momo_wrap.adapters.compiled import CompiledPasses, can_compile
from momo_wrap.adapters.group_step import GroupStep
from momo_wrap.adapters.passes import Passes
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block
from momo_wrap.reductions import Scalar
from momo_wrap.rules import WeightDecayForm
from momo_wrap.scalars import scalars_like


@dataclass(frozen=True)
class Reading:
    """The part of the base's state that a `ReadingAdapter` needs, for some parameters.

    Attributes:
        buffer: The momentum buffers B_k; None where the base has no momentum, so that B_k = g_k.
        tensors: Further columns, each with one tensor per parameter, of the parameter's shape.
        scalars: Values per parameter, each a tensor of shape [parameters], or one value for all, a
            Python number or a 0-dim tensor. One of them must be "buffer_scale", the factor p of
            each parameter, where the averaging is bias-corrected: parameters may have taken
            different numbers of steps.
    """

    buffer: list[Tensor] | None
    tensors: Mapping[str, list[Tensor]] = field(default_factory=dict)
    scalars: Mapping[str, Scalar] = field(default_factory=dict)


class ReadingAdapter(Adapter):
    """The adapter for a base whose state holds the averaged gradient and the preconditioner.

    The base advances its own state with its own code, at learning rate 0 and weight decay 0, so
    that parameters stay put. Then B_k and D_k are read from its state, and the wrapper moves the
    parameters itself. A subclass says how the base averages, which tensors to read, and how they
    make a direction; it computes on flat blocks and never sees how parameters are laid out.

    Attributes:
        advances: The classes of bases, subclasses not included, whose code the adapter can stand in
            for with `advanced`, so that one compiled pass advances the state and sums up. A
            subclass that changes how the base is read says so anew.
    """

    advances: frozenset[type[Optimizer]] = frozenset()
    _may_advance = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._may_advance = _speaks_for_itself(cls)

    @abstractmethod
    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients at this step.

        Args:
            group: An entry of the base's `param_groups`.
            state: The base's state, by parameter, after it has taken in the gradients. Only an
                optimizer whose momentum changes by a schedule of its own needs it. A
                `ProposingAdapter` that is given this method also calls it before, with a state
                that is empty at the first step.
        """

    @abstractmethod
    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Gather the base's state after it has taken in the gradients.

        Args:
            group: The parameter group.
            params: Those of its parameters that have a gradient, on one device and of one dtype.
            state: The base's state, by parameter.
        """

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u_k = D_k^{-1} d_k of a block: the base would move the parameters by -α u_k.

        Args:
            group: The parameter group.
            block: Its `flat` columns are "buffer" (B_k), "grad" (g_k, of the function that is
                minimised) and the names of `Reading.tensors`; its `scalar`s are "buffer_scale" (p),
                "grad_scale" (q) and the names of `Reading.scalars`. Must not be changed.

        Returns:
            A tensor of the block's flat shape, which may be a column itself. Here d_k: D_k = I.
        """
        return self.grad_avg(group, block)

    def grad_avg(self, group: ParamGroup, block: Block) -> Tensor:
        """Return d_k = p B_k + q g_k of a block.

        Args:
            group: The parameter group.
            block: As for `preconditioned`.

        Returns:
            A tensor of the block's flat shape, which may be a column itself.
        """
        scale, grad_scale = block.scalar("buffer_scale"), block.scalar("grad_scale")
        buffer = block.flat("buffer")
        if isinstance(scale, Tensor) or scale != 1.0:
            buffer = buffer * scale
        if isinstance(grad_scale, Tensor) or grad_scale != 0.0:
            return buffer + grad_scale * block.flat("grad")
        return buffer

    def while_advancing(self, group: ParamGroup) -> dict[str, Any]:
        """Return settings that the group needs while the base advances at learning rate 0.

        Args:
            group: The parameter group, with its own settings.

        Returns:
            Setting to value, besides lr and weight_decay, which are always 0; put back afterwards.
        """
        return {}

    def is_ready(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> bool:
        """Return whether the base has made its state for some parameters.

        Args:
            group: The parameter group.
            params: Some of its parameters.
            state: The base's state, by parameter.
        """
        return all(state.get(param) for param in params)

    def count_step(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> None:
        """Advance what the base keeps of each parameter besides tensors of its shape.

        For adapters with `advances` only, as `advanced`, before which it is called.

        Args:
            group: The parameter group.
            params: Those of its parameters that have a gradient, on one device and of one dtype.
            state: The base's state, by parameter.
        """

    def advanced(self, group: ParamGroup, block: Block) -> dict[str, Tensor]:
        """Return the base's state after it has taken in the gradients, column by column.

        For adapters with `advances`, which thereby have compiled passes. There `advanced` and
        `preconditioned` are compiled once for all groups and steps, and are given no group: what
        they need of it must be among the scalars that `read` returns.

        Args:
            group: The parameter group, or nothing.
            block: As for `preconditioned`, but with the state as it was before.

        Returns:
            Name to values of the block's flat shape, of all columns that change.
        """
        raise NotImplementedError(f"{type(self).__name__} has `advances`, but not `advanced`.")

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base has a state already; see `Adapter`."""
        return any(base.state.get(param) for param in group["params"])

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Refuse tensors of another shape than the parameter's; see `Adapter`."""
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                check_shape(where, param, name, value)

    def is_traceable(self, base: Optimizer) -> bool:
        """Return whether the base's step is, or `advanced` stands in for it; see `Adapter`."""
        if is_fused(base):
            return self._replaces_step(base)  # torch does not trace it
        # What a traced step makes of the state is found for the first group only.
        return can_take_traced_step(base) and (
            len(base.param_groups) == 1 or self._finds_state(base)
        )

    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Advance the base's state and read it; see `Adapter`."""
        groups = base.param_groups
        steps = [GroupStep(self, base, group, weight_decay) for group in groups]
        if not torch.compiler.is_dynamo_compiling():
            with at_rest(groups, [self.while_advancing(group) for group in groups]):
                base.step()
        elif is_fused(base):
            return self._advanced(base, steps, Passes)
        else:
            take_traced_step(base, [self.while_advancing(group) for group in groups])
        for step in steps:
            step.read(base.state)
        return _ReadingObservation(steps, scalars_like(groups))

    def observe_compiled(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Advance the base's state in its stead, where `advanced` can; see `Adapter`."""
        if not (can_compile(base.param_groups) and self._replaces_step(base)):
            return self.observe(base, weight_decay)
        steps = [GroupStep(self, base, group, weight_decay) for group in base.param_groups]
        mark_stepped(base)
        return self._advanced(base, steps, CompiledPasses)

    def _advanced(
        self, base: Optimizer, steps: list[GroupStep], passes: type[Passes]
    ) -> Observation:
        for step in steps:
            step.advance(base.state, passes)
        return _ReadingObservation(steps, scalars_like(base.param_groups))

    def _replaces_step(self, base: Optimizer) -> bool:
        """Return whether `advanced` can stand in for the base's own code at this step."""
        return (
            type(base) in self.advances
            and self._may_advance
            and is_plain(base)
            and has_own_step(type(base))
            and self._finds_state(base)
        )

    def _finds_state(self, base: Optimizer) -> bool:
        """Return whether the base has made the state of all parameters that have a gradient."""
        return all(
            self.is_ready(group, [p for p in group["params"] if p.grad is not None], base.state)
            for group in base.param_groups
        )


_READ = frozenset({"averaging", "read", "preconditioned", "grad_avg", "while_advancing"})


def _speaks_for_itself(adapter: type[ReadingAdapter]) -> bool:
    """Return whether `advances` was said by a class that knew all that makes the direction."""
    for cls in adapter.__mro__:
        if {"advances", "advanced"} & vars(cls).keys():
            return True
        if _READ & vars(cls).keys():
            return False
    return False


class _ReadingObservation(Observation):
    def __init__(self, steps: list[GroupStep], scalars: Tensor) -> None:
        self._steps = steps
        self.sums = [step.sums(scalars.device, scalars.dtype) for step in steps]
        self.averagings = [step.averaging for step in steps]

    def apply(self, thetas: Sequence[Tensor]) -> list[Tensor]:
        return [step.apply(theta) for step, theta in zip(self._steps, thetas, strict=True)]
