"""The adapter for any optimizer: let it take its whole step, then keep a fraction of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

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
from momo_wrap.adapters.sums import added, along_average, with_gradient_by_kind
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Scalar, blocks, to_device
from momo_wrap.scalars import scalar, scalars_like

# Where the average that the adapter keeps itself is, in the base's state of a parameter.
GRAD_AVG_KEY = "momo_grad_avg"

_PARAM = ""  # among the names of iterates

AveragingOfGroup: TypeAlias = Callable[[ParamGroup, State], Averaging]


class ProposingAdapter(Adapter):
    r"""Lets the base take its own full step s = x_new - x_old, and keeps the fraction θ of it.

        θ = clip( (f̄ + e - ρ f*) / (-⟨d, s⟩) , 0, 1 ) ,    x = x_old + θ s                     (8)

    No preconditioner is needed, only an averaged gradient d: the base's own where it has one, else
    one that the adapter keeps. The base's weight decay is part of its step, in the base's own form,
    and is cut with it. Where a `ReadingAdapter` applies too and nothing decays, both do the same.

    It costs a copy of the parameters while a step is taken; without `momentum` a second one, of the
    gradients' average, that stays; and a third while a step is taken where the direction has a term
    in the gradient itself. A parameter without a gradient is left to the base.

    Args:
        momentum: The name in the base's state, per parameter, of its average of gradients (not of
            preconditioned or decayed ones); None: the adapter keeps its own.
        beta: The decay of the average, in [0, 1); None: 0.9. An average of the base is taken to
            start at 0, B_k = β B_{k-1} + (1 - β) g_k; one that the adapter keeps starts with the
            first gradient. Without `momentum`, `beta=0` takes the gradient itself as d.
        averaging: Instead of `beta`, how a parameter group averages, from the group and the base's
            state.
        iterates: Names in the base's state of further copies of the parameters that move with them,
            such as the sequence z of a schedule-free method. They keep the fraction θ of their
            moves as well, and cost a copy each. One that is not there yet starts at the parameter.

    Raises:
        TypeError: `momentum` is not a string.
        ValueError: `beta` is out of range, or comes with `averaging`.
    """

    needs_lr = False

    def __init__(
        self,
        momentum: str | None = None,
        beta: float | None = None,
        *,
        averaging: AveragingOfGroup | None = None,
        iterates: Sequence[str] = (),
    ) -> None:
        if not (momentum is None or isinstance(momentum, str)):
            raise TypeError(
                "momentum must name an entry of the base's state, got "
                f"{type(momentum).__name__}. Write ProposingAdapter(momentum='exp_avg', beta=0.9)."
            )
        if beta is not None and averaging is not None:
            raise ValueError(
                "ProposingAdapter got beta and averaging, expected one of them. Put the decay into "
                "averaging: averaging=lambda group, state: Averaging(beta, 1 - beta)."
            )
        beta = 0.9 if beta is None else beta
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"beta must be at least 0 and below 1, got {beta}. Write "
                "ProposingAdapter(beta=0.9)."
            )
        self.momentum = momentum
        self.beta = beta
        self.iterates = tuple(iterates)
        self._averaging = averaging

    def __repr__(self) -> str:
        how = f"beta={self.beta}" if self._averaging is None else f"averaging={self._averaging!r}"
        iterates = f", iterates={self.iterates}" if self.iterates else ""
        return f"ProposingAdapter(momentum={self.momentum!r}, {how}{iterates})"

    def memory(self, base: Optimizer) -> int:
        """Return how much memory a step needs beyond the base's own.

        Args:
            base: The optimizer that is wrapped.

        Returns:
            Bytes, while a step is taken; the average of gradients stays.
        """
        size = 0
        for group in base.param_groups:
            averaging = self.averaging(group, base.state)
            average = self.momentum is None and not averaging.is_gradient
            gradient = averaging.uses_gradient or averaging.is_gradient
            copies = 1 + len(self.iterates) + average + gradient
            size += copies * sum(param.nbytes for param in group["params"])
        return size

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients at this step.

        Args:
            group: An entry of the base's `param_groups`.
            state: The base's state, by parameter.
        """
        if self._averaging is not None:
            return self._averaging(group, state)
        if self.momentum is None and self.beta == 0.0:
            return Averaging(decay=0.0, weight=1.0)
        first = 1.0 if self.momentum is None else None
        return Averaging(decay=self.beta, weight=1.0 - self.beta, first_weight=first)

    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Take the base's step, sum it up and put the parameters back; see `Adapter`."""
        proposals = [
            _Proposal(self, base, group, params, grads)
            for group in base.param_groups
            for params, grads in with_gradient_by_kind(group["params"])
        ]
        try:
            base.step()
            for proposal in proposals:
                proposal.gather()
            observation = _ProposingObservation(self, base, proposals)
        finally:
            for proposal in proposals:
                proposal.withdraw()
        return observation


class _ProposingObservation(Observation):
    def __init__(
        self, adapter: ProposingAdapter, base: Optimizer, proposals: list[_Proposal]
    ) -> None:
        self._groups, self._proposals = base.param_groups, proposals
        like = scalars_like(self._groups)
        self.averagings = [adapter.averaging(group, base.state) for group in self._groups]
        self.sums = []
        for group, averaging in zip(self._groups, self.averagings, strict=True):
            own = [proposal for proposal in proposals if proposal.group is group]
            pairs = [pair for proposal in own for pair in proposal.inner_products(averaging)]
            self.sums.append(_sums(pairs, like))

    def apply(self, theta: Tensor) -> list[Tensor]:
        for proposal in self._proposals:
            proposal.apply(theta)
        self._proposals = []  # and with them the copies of the parameters
        return [_effective_lr(theta, group) for group in self._groups]


def _sums(pairs: list[tuple[Tensor, Tensor]], like: Tensor) -> StepSums:
    buffer_move, increase = added(pairs, like.device, like.dtype)
    zero = torch.zeros_like(increase)
    return StepSums(
        predicted_decrease=-increase,
        gradient_decrease=-increase,
        decay_shift=zero,
        buffer_move=buffer_move,
        buffer_move_by_decay=zero,
    )


def _effective_lr(theta: Tensor, group: ParamGroup) -> Tensor:
    lr = scalar(group["lr"]) if group.get("lr") is not None else 1.0
    return theta * lr


class _Proposal:
    """The step that the base proposes for some parameters of a group, of one device and dtype."""

    def __init__(
        self,
        adapter: ProposingAdapter,
        base: Optimizer,
        group: ParamGroup,
        params: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        self.group = group
        self._adapter, self._base, self._params = adapter, base, params
        averaging = adapter.averaging(group, base.state)
        sign = -1.0 if maximizes(base, group) else 1.0
        # The gradients are looked at before the base steps: some bases change them in place.
        self._averages: list[Tensor] = []
        if adapter.momentum is None and not averaging.is_gradient:
            self._averages = self._averaged(averaging, grads, sign)
        needs_grads = averaging.uses_gradient or averaging.is_gradient
        self._grads = list(torch._foreach_mul(grads, sign)) if needs_grads else grads
        self._old = {name: [x.clone() for x in column] for name, column in self._moving().items()}

    def _averaged(self, averaging: Averaging, grads: list[Tensor], sign: float) -> list[Tensor]:
        """Take the averages out of the base's state, which it may expect to be empty, and update.

        B_k = a B_{k-1} + b g_k, rounded once.
        """
        kept = [self._base.state.get(p, {}).pop(GRAD_AVG_KEY, None) for p in self._params]
        averages = [
            # Some bases load their whole state in another dtype.
            torch.zeros_like(param) if average is None else average.to(param.dtype)
            for param, average in zip(self._params, kept, strict=True)
        ]
        first = averaging.weight if averaging.first_weight is None else averaging.first_weight
        for is_first, weight in ((False, averaging.weight), (True, first)):
            some = [i for i, average in enumerate(kept) if (average is None) == is_first]
            columns = {"average": [averages[i] for i in some], "grad": [grads[i] for i in some]}
            for block in blocks(columns, {"decay": averaging.decay, "weight": weight}):
                average = block.flat("average").mul_(block.scalar("decay"))
                average.add_(block.flat("grad") * block.scalar("weight"), alpha=sign)
                block.write_back("average", average)
        return averages

    def _moving(self) -> dict[str, list[Tensor]]:
        """Return everything that moves with the parameters, as it is in the base."""
        state = self._base.state
        iterates = {
            name: [state[p].get(name, p) if p in state else p for p in self._params]
            for name in self._adapter.iterates
        }
        return {_PARAM: self._params, **iterates}

    def gather(self) -> None:
        """Find the averages, after the base has stepped."""
        self._buffers = self._averages or self._grads
        key = self._adapter.momentum
        if key is None:
            return
        entries = [self._base.state[param] for param in self._params]
        for param, entry in zip(self._params, entries, strict=True):
            if getattr(entry.get(key), "shape", None) != param.shape:
                raise ValueError(
                    f"ProposingAdapter(momentum={key!r}) found no tensor of that name and of shape "
                    f"{list(param.shape)} in the state of {type(self._base).__name__}, which has "
                    f"{sorted(map(str, entry))}. Write ProposingAdapter() to have an average kept."
                )
        self._buffers = [entry[key] for entry in entries]

    def inner_products(self, averaging: Averaging) -> Iterator[tuple[Tensor, Tensor]]:
        """Return ⟨p B, s⟩ and ⟨d, s⟩ of each block, before the step is withdrawn."""
        columns = {
            "new": self._params,
            "old": self._old[_PARAM],
            "buffer": self._buffers,
            "grad": self._grads,
        }
        scales = {
            "buffer_scale": _buffer_scale(averaging, self.group),
            "grad_scale": averaging.grad_scale,
        }
        for block in blocks(columns, scales):
            yield along_average(block, block.flat("new") - block.flat("old"))

    def withdraw(self) -> None:
        """Put the parameters back to where they were, and keep what was proposed instead."""
        for param, average in zip(self._params, self._averages, strict=False):
            self._base.state[param][GRAD_AVG_KEY] = average
        for name, column in self._moving().items():
            for block in blocks({"new": column, "old": self._old[name]}, {}):
                proposed = block.flat("new").clone()
                block.write("new", block.flat("old"))
                block.write("old", proposed)

    def apply(self, theta: Tensor) -> None:
        """Move by the fraction θ of what was proposed."""
        for name, column in self._moving().items():
            for block in blocks({"x": column, "proposed": self._old[name]}, {}):
                x = block.flat("x")
                fraction = to_device(theta, x.device, x.dtype)
                moved = torch.lerp(x, block.flat("proposed"), fraction)
                # A proposal that overflowed does not count where nothing moves.
                block.write("x", torch.where(fraction == 0, x, moved))


def _buffer_scale(averaging: Averaging, group: ParamGroup) -> Scalar:
    """Return p, with the wrapper's own count of what is in the average."""
    if not averaging.bias_corrected:
        return averaging.buffer_scale
    last: Tensor = group["momo_weight_sum"]
    weight_sum = averaging.decay * last + averaging.weight  # R_k
    return averaging.buffer_scale / weight_sum
