"""What a step did to the loss of the next batch, which the step had not seen: slopes and probes.

After step k the parameters are x', and the next batch ξ gives its gradient g and its loss f(x'; ξ)
there. The gradient gives the slope of the loss at the end of the step, along it,

    σ = ⟨g, x - x'⟩ ,    E[σ] = ⟨∇f(x'), x - x'⟩

which only needs a copy of the parameters x before the step. One more evaluation, at x, gives

    o = f(x; ξ) - f(x'; ξ) ,    E[o] = f(x) - f(x')

an unbiased measurement of what the step did to the expected loss, without the noise between batches
and without other changes of the loss. If the loss is a parabola along a step of size r, its minimum
is at the step size r* = r (o - σ/2)/(o - σ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss, check_probe
from momo_wrap.checks.losses import checked_loss
from momo_wrap.distributed import reshard
from momo_wrap.engine.blocks import real
from momo_wrap.engine.copies import Copies
from momo_wrap.engine.random_states import differ, random_states, set_random_states
from momo_wrap.engine.scalars import Scalar, as_scalar
from momo_wrap.rules import ModelStats, StepRule

Probe: TypeAlias = Callable[[], Loss]

_WITHOUT_STATE = ("cpu", "meta")
_INSTEAD = (
    "probe=lambda: loss_function(model(inputs), targets).mean()",
    "probe=lambda: loss_function(model(inputs), targets).real",
    "probe=lambda: loss_function(model(inputs), targets)",
)


class Before:
    """The parameters before a measured step, and the model's prediction for the step.

    Args:
        params: The parameters that may move, each with λ if the base adds λ x to its gradient, else
            0, and its `shards`.
        moving: The tensor measured and copied for each: the parameter, or the anchor whose move the
            model predicts, see `momo_wrap.adapters.Adapter.moving`.
        wants_probe: Whether to evaluate the loss of the next batch here, too.

    Attributes:
        params, moving, wants_probe: As given.
        predicted: The decrease of the loss that the model predicts, including λ ‖x‖²/2; 0-dim.
        groups: The parameter group of each parameter, until λ is known.
    """

    predicted: Tensor
    groups: Sequence[int]

    def __init__(
        self,
        params: Sequence[tuple[Tensor, Scalar, int]],
        moving: Sequence[Tensor],
        *,
        wants_probe: bool,
    ) -> None:
        self.params, self.moving, self.wants_probe = params, moving, wants_probe
        self._copies = Copies(_with_shards(params, moving))

    @property
    def previous(self) -> list[Tensor]:
        """The copies: real tensors of the local shards, in at least float32."""
        return self._copies.values

    @classmethod
    @torch.no_grad()
    def restored(
        cls,
        params: Sequence[tuple[Tensor, Scalar, int]],
        moving: Sequence[Tensor],
        predicted: Tensor,
        wants_probe: bool,
        previous: Sequence[Tensor],
    ) -> Before:
        """Return the object for parameters that have moved since."""
        before = cls(params, moving, wants_probe=wants_probe)
        before.predicted = predicted
        torch._foreach_copy_(before.previous, list(previous))
        return before

    def again(
        self,
        params: Sequence[tuple[Tensor, Scalar, int]],
        moving: Sequence[Tensor],
        *,
        wants_probe: bool,
    ) -> bool:
        """Copy again into the same memory and return True, or return False for other parameters."""
        self.params, self.moving, self.wants_probe = params, moving, wants_probe
        return self._copies.take(_with_shards(params, moving))

    def predict(self, stats: ModelStats, theta: Tensor, decays: Sequence[Scalar]) -> None:
        """Store the model's prediction for a fraction θ of the step, and λ of each group."""
        self.predicted = _predicted(stats, theta)
        if decays:
            self.params = [
                (param, decays[group], shards)
                for (param, _, shards), group in zip(self.params, self.groups, strict=True)
            ]

    def __reduce__(self) -> tuple[object, ...]:
        # The copies share memory, which pickle does not keep.
        previous = [value.clone() for value in self.previous]
        known = (self.params, self.moving, self.predicted, self.wants_probe)
        return Before.restored, (*known, previous)

    def measure(
        self,
        probe: Probe | None,
        loss: Loss,
        like: Tensor,
        sign: float,
        clipping: Loss | None,
        *,
        own_loss: bool,
    ) -> Tensor | None:
        """Return what the step did to the loss of the next batch, on this rank. Call it once.

        Args:
            probe: Returns the loss of the batch at the current parameters; None: no probe.
            loss: Its loss at the current parameters.
            like: A tensor of the device and dtype of the scalars.
            sign: -1 if the loss is maximized.
            clipping: The factor by which its gradients were clipped; None: no clipping.
            own_loss: Whether the probe would return this loss now.

        Returns:
            The decrease of the loss, NaN without a probe, and the decrease if it were as steep
            along the whole step as at its end; shape [2]. The loss includes λ ‖x‖²/2 with λ of that
            step. None if shapes have changed.
        """
        now = [real(moving) for moving in self.moving]
        pairs = zip(now, self.previous, strict=True)
        if not all(param.shape == previous.shape for param, previous in pairs):
            return None
        decrease = like.new_full((), math.nan)
        if probe is not None and self.wants_probe:
            fall = self._fall(probe, loss, like, now, own_loss=own_loss)
            decrease = sign * fall + self._penalty(now, like)
        return torch.stack([decrease, self._slope(now, like, sign, clipping)])

    def _fall(
        self, probe: Probe, loss: Loss, like: Tensor, now: Sequence[Tensor], *, own_loss: bool
    ) -> Tensor:
        """Return the decrease of the loss, with the same random numbers."""
        devices = {p.device for p in now if p.device.type not in _WITHOUT_STATE}
        states = random_states(devices)
        try:
            with self._moved_back(now):
                then = _evaluate(probe, like)
            drawn = any(map(differ, states, random_states(devices)))
            if drawn or not own_loss:
                set_random_states(devices, states)  # the same random numbers for both
                loss = _evaluate(probe, like)
        finally:
            set_random_states(devices, states)
            self._reshard()
        return then - as_scalar(loss, like)

    def seen(self, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decrease that `measure` found, the predicted one, and the slope."""
        return measured[0], self.predicted, measured[1]

    def _penalty(self, now: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return the decrease of λ ‖x‖²/2, not as a difference of large numbers."""
        penalty = like.new_zeros(())
        for decay, before, x in self._decayed(now):
            penalty = penalty + as_scalar(((before - x) * (before + x)).sum() * decay / 2, like)
        return penalty

    def _decayed(self, now: Sequence[Tensor]) -> Iterator[tuple[Scalar, Tensor, Tensor]]:
        """Yield λ times `shards`, x and x' of the parameters whose λ may not be 0."""
        for (_, decay, shards), before, x in zip(self.params, self.previous, now, strict=True):
            if isinstance(decay, Tensor) or decay != 0.0:
                yield decay * shards, before, x

    def _slope(
        self, now: Sequence[Tensor], like: Tensor, sign: float, clipping: Loss | None
    ) -> Tensor:
        """Return ⟨g + λ x', x - x'⟩, each times `shards`; overwrites the copies."""
        decayed = [
            as_scalar(((before - x) * x).sum() * decay, like)
            for decay, before, x in self._decayed(now)
        ]
        parts = []
        for part, shards in self._copies.slopes(now, [param.grad for param, _, _ in self.params]):
            part = as_scalar(part, like)
            parts.append(part if sign * shards == 1 else part * (sign * shards))
        slope = parts[0] if len(parts) == 1 else torch.stack([like.new_zeros(()), *parts]).sum()
        if clipping is not None:
            slope = slope / as_scalar(clipping, like)
        return torch.stack([slope, *decayed]).sum() if decayed else slope

    def _reshard(self) -> None:
        reshard(param for param, _, _ in self.params)

    @contextmanager
    def _moved_back(self, now: Sequence[Tensor]) -> Iterator[None]:
        """Move the parameters back to x, and in any case to x' afterwards."""
        params = list(now)
        kept = [param.clone() for param in params]
        try:
            torch._foreach_copy_(params, self.previous)
            self._reshard()
            yield
        finally:
            torch._foreach_copy_(params, kept)
            self._reshard()


def measured(
    before: Before | None,
    probe: Probe | None,
    loss: Loss,
    like: Tensor,
    sign: float,
    clipping: Loss | None,
    own_loss: bool,
) -> Tensor | None:
    """Return the measurement of the last step, see `Before.measure`; None: it was not measured."""
    if probe is not None:
        check_probe(probe)
    if before is None or (before.wants_probe and probe is None):
        return None
    return before.measure(probe, loss, like, sign, clipping, own_loss=own_loss)


def before_step(
    rule: StepRule,
    early: ModelStats,
    movable: Callable[[], Sequence[tuple[Tensor, int, int, Tensor]]],
    last: Before | None,
) -> Before | None:
    """Return the parameters before this step if it is to be measured, else None.

    It reuses the memory of the last one.
    """
    probe = early.has_probe and rule.wants_probe(early)
    if not probe and not rule.wants_slope(early):
        return None
    if early.loss.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{type(rule).__name__} measures some of the steps, but a CUDA graph would replay one "
            "of them for all. Capture with a rule that measures no steps: MoMoWrapper(optimizer, "
            "MoMo())."
        )
    found, before = movable(), last
    params, moving = [(param, 0.0, shards) for param, _, shards, _ in found], [m for *_, m in found]
    # A probe measures the move of parameters, which the model of an anchor does not predict.
    probe = probe and all(param is its for param, _, _, its in found)
    if before is None or not before.again(params, moving, wants_probe=probe):
        before = Before(params, moving, wants_probe=probe)
    before.groups = [group for _, group, _, _ in found]
    return before


def _with_shards(
    params: Sequence[tuple[Tensor, Scalar, int]], moving: Sequence[Tensor]
) -> list[tuple[Tensor, int]]:
    return [(its, shards) for its, (_, _, shards) in zip(moving, params, strict=True)]


def _predicted(stats: ModelStats, theta: Tensor) -> Tensor:
    """Return the decrease that the model predicts for a fraction θ of the step."""
    after_decay = stats.value - stats.value_after_decay
    if theta.dim() and stats.groups is not None:
        return after_decay + (theta * stats.groups.predicted_decrease).sum()
    return torch.addcmul(after_decay, theta, stats.predicted_decrease)


def _evaluate(probe: Probe, like: Tensor) -> Tensor:
    """Return the loss of a probe as a 0-dim tensor."""
    return as_scalar(probed_loss(probe), like)


def probed_loss(probe: Probe) -> Loss:
    """Return the loss of a probe; raise if it is not a loss."""
    return checked_loss(probe(), "the probe returned", _INSTEAD)
