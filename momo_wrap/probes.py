"""Probes: what a step did to the loss of the next batch, which had no part in it.

After step k the parameters are x', and the next batch ξ gives f(x'; ξ) for free. One more
evaluation, at the parameters x before the step, gives

    o = f(x; ξ) - f(x'; ξ) ,    E[o] = f(x) - f(x')

an unbiased measurement of what the step did to the expected loss, without the noise between batches
and without whatever else moves the loss. The gradient g of that batch, which is there for the next
step, gives the slope at the end, σ = ⟨g, x - x'⟩. Where the loss is a parabola along the step, its
least value is at r* = r (o - σ/2)/(o - σ) of a step that was r long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from types import FunctionType
from typing import TypeAlias

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss
from momo_wrap.checks.losses import checked_loss
from momo_wrap.distributed import local, reshard
from momo_wrap.engine.blocks import real
from momo_wrap.engine.scalars import Scalar, as_scalar
from momo_wrap.rules import ModelStats

Probe: TypeAlias = Callable[[], Loss]

_WITHOUT_STATE = ("cpu", "meta")
_INSTEAD = (
    "probe=lambda: loss_function(model(inputs), targets).mean()",
    "probe=lambda: loss_function(model(inputs), targets).real",
    "probe=lambda: loss_function(model(inputs), targets)",
)


class Before:
    """The parameters before a step that is to be probed, and what the model foretells of it.

    Args:
        params: What is about to move, with its group and its `shards`. It is copied.
        stats: The model.
        theta: The fraction that is taken, 0-dim or of shape [groups].
        decays: λ of each group where the base adds λ x to the gradients; else nothing.

    Attributes:
        foretold: By how much the model foretells the loss to fall, with λ ‖x‖²/2 in it; 0-dim.
    """

    def __init__(
        self,
        params: Sequence[tuple[Tensor, int, int]],
        stats: ModelStats,
        theta: Tensor,
        decays: Sequence[Scalar],
    ) -> None:
        self._before = [(p, local(p.detach()).clone()) for p, _, _ in params]
        self._shards = [shards for _, _, shards in params]
        self._decays = [decays[group] * shards for _, group, shards in params] if decays else []
        whole = stats.predicted_decrease
        if theta.dim() and stats.groups is not None:
            whole = stats.groups.predicted_decrease
        self.foretold = stats.value - stats.value_after_decay + (theta * whole).sum()

    def measure(
        self, probe: Probe, loss: Loss, like: Tensor, sign: float, *, own_loss: bool
    ) -> Tensor | None:
        """Return what the step has done to the loss of the next batch, on this rank.

        Args:
            probe: Returns the loss of the batch at the parameters as they are.
            loss: What it has returned at the parameters as they are.
            like: A tensor of the device and dtype of the scalars.
            sign: -1 where the loss is maximised.
            own_loss: Whether the loss is what the probe would return now.

        Returns:
            By how much the loss has fallen, and by how much it would have if it had been as steep
            all the way as it is at the end, shape [2], with λ ‖x‖²/2 in the loss as it was at that
            step; None where there is no way back.
        """
        if not all(local(p.detach()).shape == before.shape for p, before in self._before):
            return None
        devices = {p.device for p, _ in self._before if p.device.type not in _WITHOUT_STATE}
        states = _random_states(devices)
        try:
            with self._moved_back():
                then = _evaluate(probe, like)
            drawn = any(map(_differ, states, _random_states(devices)))
            if drawn or not own_loss:
                _set_random_states(devices, states)  # the same random numbers for both
                loss = _evaluate(probe, like)
        finally:
            _set_random_states(devices, states)
            reshard(param for param, _ in self._before)
        penalty, slope = self._along(like, sign).unbind()
        return torch.stack([sign * (then - as_scalar(loss, like)) + penalty, slope])

    def seen(self, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decrease that `measure` found, the one that was foretold, and the slope."""
        return measured[0], self.foretold, measured[1]

    def _along(self, like: Tensor, sign: float) -> Tensor:
        """Return by how much λ ‖x‖²/2 has fallen, and ⟨g + λ x', x - x'⟩, each times `shards`.

        The former is no difference of large numbers.
        """
        penalty = slope = torch.zeros_like(as_scalar(0.0, like))
        for i, (param, before) in enumerate(self._before):
            then, now = (real(x).to(like.dtype) for x in (before, local(param.detach())))
            moved, decay = then - now, self._decays[i] if self._decays else 0.0
            if isinstance(decay, Tensor) or decay != 0.0:
                penalty = penalty + as_scalar((moved * (then + now)).sum() * decay / 2, like)
                slope = slope + as_scalar((moved * now).sum() * decay, like)
            if param.grad is not None and param.grad.layout is torch.strided:
                grad = real(local(param.grad)).to(like.dtype)
                slope = slope + as_scalar(sign * self._shards[i] * (grad * moved).sum(), like)
        return torch.stack([penalty, slope])

    @contextmanager
    def _moved_back(self) -> Iterator[None]:
        """Put the parameters to where they were, and then, whatever happens, to where they are."""
        params = [local(param.detach()) for param, _ in self._before]
        kept = [param.clone() for param in params]
        try:
            torch._foreach_copy_(params, [before for _, before in self._before])
            reshard(param for param, _ in self._before)
            yield
        finally:
            torch._foreach_copy_(params, kept)
            reshard(param for param, _ in self._before)


def _evaluate(probe: Probe, like: Tensor) -> Tensor:
    """Return what a probe returns, like a 0-dim tensor."""
    return as_scalar(probed_loss(probe), like)


def probed_loss(probe: Probe) -> Loss:
    """Return what a probe returns, and refuse what is no loss."""
    return checked_loss(probe(), "the probe returned", _INSTEAD)


def same_function(one: object, other: object) -> bool:
    """Return whether two functions have the same code, and the same variables, not only values."""
    return one is other or (
        isinstance(one, FunctionType)
        and isinstance(other, FunctionType)
        and one.__code__ is other.__code__
        and _are(one.__closure__, other.__closure__)
        and _are(one.__defaults__, other.__defaults__)
        and one.__kwdefaults__ is other.__kwdefaults__
    )


def _are(some: tuple[object, ...] | None, others: tuple[object, ...] | None) -> bool:
    return all(a is b for a, b in zip_longest(some or (), others or ()))


def _random_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """Return the states of the random number generators of the CPU and of devices."""
    own = [torch.get_device_module(device).get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *own]


def _set_random_states(devices: Iterable[torch.device], states: Sequence[Tensor]) -> None:
    """Set the states that `_random_states` returned."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two states, which are on the host, differ."""
    return not torch.equal(one, other)
