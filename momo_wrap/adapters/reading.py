"""Adapters that read the momentum buffer and the preconditioner out of the base's own state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import (
    Adapter,
    Observation,
    ParamGroup,
    State,
    StepSums,
    WeightDecayForm,
    maximizes,
)
from momo_wrap.adapters.sums import Kind, added, along_average, with_gradient_by_kind
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block, Scalar, blocks, to_device
from momo_wrap.scalars import scalar, scalars_like


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
    """

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

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base has a state already; see `Adapter`."""
        return any(base.state.get(param) for param in group["params"])

    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Advance the base's state and read it; see `Adapter`."""
        groups = base.param_groups
        steps = [_GroupStep(self, base, group, weight_decay) for group in groups]
        with _settings(groups, [self._at_rest(group) for group in groups]):
            base.step()
        for step in steps:
            step.read(base.state)
        return _ReadingObservation(steps, scalars_like(groups))

    def _at_rest(self, group: ParamGroup) -> dict[str, Any]:
        return {**self.while_advancing(group), "lr": 0.0, "weight_decay": 0.0}


class _ReadingObservation(Observation):
    def __init__(self, steps: list[_GroupStep], scalars: Tensor) -> None:
        self._steps = steps
        self.sums = [step.sums(scalars.device, scalars.dtype) for step in steps]
        self.averagings = [step.averaging for step in steps]

    def apply(self, theta: Tensor) -> list[Tensor]:
        return [step.apply(theta) for step in self._steps]


class _GroupStep:
    """One parameter group's share of a step: its sums first, its move afterwards.

    Both forms of weight decay are x <- factor x - θ pull u: proximal with factor = c and pull =
    c α, equation (4); decoupled with factor = 1 - α λ and pull = α.
    """

    averaging: Averaging

    def __init__(
        self, adapter: ReadingAdapter, base: Optimizer, group: ParamGroup, form: WeightDecayForm
    ) -> None:
        self._adapter, self._group = adapter, group
        self._maximizes = maximizes(base, group)
        lr = scalar(group["lr"])
        self._lr = lr if isinstance(lr, Tensor) else max(lr, 0.0)  # a schedule's rounding
        decay = scalar(group.get("weight_decay", 0.0))
        self._decays = isinstance(decay, Tensor) or decay != 0.0
        self._shrink = 1.0 / (1.0 + self._lr * decay)  # c_i
        self._decay_factor = self._shrink if form == "proximal" else 1.0 - self._lr * decay
        self._pull = self._shrink * self._lr if form == "proximal" else self._lr
        # Gradients are held on to before the base steps: a hook of the base may drop them.
        self._kinds = with_gradient_by_kind(group["params"])
        self._blocks: list[Block] = []

    def read(self, state: State) -> None:
        """Find out what the base has stored, after it has taken in the gradients."""
        self.averaging = self._adapter.averaging(self._group, state)
        for kind in self._kinds:
            self._blocks.extend(self._cut(kind, state))

    def _cut(self, kind: Kind, state: State) -> Iterator[Block]:
        reading = self._adapter.read(self._group, kind.params, state)
        _check_reading(reading, self.averaging)
        buffer = reading.buffer or kind.grads
        columns = {"param": kind.params, "buffer": buffer, "grad": kind.grads, **reading.tensors}
        scales = {
            "buffer_scale": self.averaging.buffer_scale,
            "grad_scale": self.averaging.grad_scale,
        }
        # The base negates gradients as it takes them in, so the buffers that it keeps have the
        # sign of a minimisation already.
        raw = {"grad"} if reading.buffer else {"grad", "buffer"}
        negated = frozenset(raw) if self._maximizes else frozenset()
        return blocks(columns, {**scales, **reading.scalars}, negated, kind.shards)

    def sums(self, device: torch.device, dtype: torch.dtype) -> StepSums:
        """Return the group's sums as scalars of `dtype` on `device`."""
        slopes, levels = [], []
        for block in self._blocks:
            slopes.append(along_average(block, self._adapter.preconditioned(self._group, block)))
            if self._decays:
                levels.append(along_average(block, block.flat("param")))

        (buffer_slope, slope) = added(slopes, device, dtype)
        (buffer_level, level) = added(levels, device, dtype)
        return StepSums(
            predicted_decrease=self._shrink * self._lr * slope,
            gradient_decrease=self._lr * slope,
            decay_shift=(self._shrink - 1.0) * level,
            buffer_move=-self._pull * buffer_slope,
            buffer_move_by_decay=(self._decay_factor - 1.0) * buffer_level,
        )

    def apply(self, theta: Tensor) -> Tensor:
        """Move the group's parameters and return θα."""
        pull = theta * self._pull
        for block in self._blocks:
            u = self._adapter.preconditioned(self._group, block)
            x = block.flat("param")
            if self._decays:
                x.mul_(self._decay_factor)
            x.addcmul_(u, to_device(pull, u.device, u.dtype), value=-1.0)
            block.write_back("param", x)
        return theta * self._lr


def _check_reading(reading: Reading, averaging: Averaging) -> None:
    taken = {"param", "buffer", "grad"} & reading.tensors.keys()
    if taken:
        raise ValueError(
            f"read() returned tensors named {sorted(taken)}, which every block has already. Choose "
            "other names in Reading(tensors=...)."
        )
    if averaging.bias_corrected and "buffer_scale" not in reading.scalars:
        raise ValueError(
            "The averaging is bias-corrected, but read() returned no scalars named 'buffer_scale'. "
            "Write Reading(..., scalars={'buffer_scale': 1 / (1 - beta1**steps)})."
        )


@contextmanager
def _settings(groups: list[ParamGroup], settings: list[dict[str, Any]]) -> Iterator[None]:
    """Give the groups other settings for a while, and put back the very objects that were there."""
    saved = [dict(group) for group in groups]
    try:
        for group, changes in zip(groups, settings, strict=True):
            group.update(changes)
        yield
    finally:
        for group, before, changes in zip(groups, saved, settings, strict=True):
            for key in changes:
                if key in before:
                    group[key] = before[key]
                else:
                    group.pop(key, None)
