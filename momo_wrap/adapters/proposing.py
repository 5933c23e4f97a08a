"""The adapter for any optimizer: let it take its whole step, then keep a fraction of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.base import (
    Adapter,
    Observation,
    ParamGroup,
    State,
    StepSums,
    check_shape,
)
from momo_wrap.adapters.proposal import GRAD_AVG_KEY, Proposal
from momo_wrap.adapters.sums import added, with_gradient_by_kind
from momo_wrap.averaging import Averaging
from momo_wrap.rules import WeightDecayForm
from momo_wrap.scalars import scalar, scalars_like

# The entries of a group that the model is made of.
MODEL_SCALARS = ("momo_loss_sum", "momo_weight_sum", "momo_displacement")

AveragingOfGroup: TypeAlias = Callable[[ParamGroup, State], Averaging]


class ProposingAdapter(Adapter):
    r"""Lets the base take its own full step s = x_new - x_old, and keeps the fraction θ of it.

        θ = clip( (f̄ + e - ρ f*) / (-⟨d, s⟩) , 0, 1 ) ,    x = x_old + θ s                     (8)

    No preconditioner is needed, only an averaged gradient d: the base's own where it has one, else
    one that the adapter keeps. The base's weight decay is part of its step, in the base's own form,
    and is cut with it. Where a `ReadingAdapter` applies too and nothing decays, both do the same.

    It costs a copy of the parameters while a step is taken; without `momentum` a second one, of the
    gradients' average, that stays; and a third while a step is taken where the direction has a term
    in the gradient itself, or where `averaging` describes an average that the adapter keeps. A
    parameter without a gradient is left to the base.

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
            average, gradient = self.keeps_average(averaging), self.keeps_gradients(averaging)
            copies = 1 + len(self.iterates) + average + gradient
            size += copies * sum(p.nbytes for p in group["params"] if not is_lazy(p))
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

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the average is the base's and is there already; see `Adapter`."""
        states = [base.state.get(param, {}) for param in group["params"]]
        return self.momentum is not None and any(self.momentum in state for state in states)

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Refuse an average of another shape than the parameter's; see `Adapter`."""
        if GRAD_AVG_KEY in entry:
            check_shape(where, param, GRAD_AVG_KEY, entry[GRAD_AVG_KEY])

    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Take the base's step, sum it up and put the parameters back; see `Adapter`."""
        proposals = [
            Proposal(self, base, group, kind)
            for group in base.param_groups
            for kind in with_gradient_by_kind(group["params"])
        ]
        done = False
        try:
            for group in base.param_groups:
                self._start_afresh_without_average(base, group)
            for proposal in proposals:
                proposal.start()
            base.step()
            for proposal in proposals:
                proposal.gather()
            observation = _ProposingObservation(self, base, proposals)
            done = True
        finally:
            for proposal in proposals:
                proposal.withdraw(done=done)
        return observation

    def keeps_average(self, averaging: Averaging) -> bool:
        """Return whether the average of gradients is the adapter's own."""
        may_change = self._averaging is not None
        return self.momentum is None and (may_change or not averaging.is_gradient)

    def keeps_gradients(self, averaging: Averaging) -> bool:
        """Return whether the gradients have to be kept while the base steps."""
        depends_on_state = self.momentum is None and self._averaging is not None
        return averaging.uses_gradient or averaging.is_gradient or depends_on_state

    def _start_afresh_without_average(self, base: Optimizer, group: ParamGroup) -> None:
        """Reset the model of a group whose average a checkpoint has lost.

        Some tools save only what a fresh optimizer of the base's class has in its state.
        """
        if not self.keeps_average(self.averaging(group, base.state)):
            return
        if not any(GRAD_AVG_KEY in base.state.get(param, {}) for param in group["params"]):
            for name in MODEL_SCALARS:
                if isinstance(group.get(name), Tensor):
                    group[name].zero_()


class _ProposingObservation(Observation):
    def __init__(
        self, adapter: ProposingAdapter, base: Optimizer, proposals: list[Proposal]
    ) -> None:
        self._groups, self._proposals = base.param_groups, proposals
        like = scalars_like(self._groups)
        self.averagings = [adapter.averaging(group, base.state) for group in self._groups]
        self.sums = []
        for group, averaging in zip(self._groups, self.averagings, strict=True):
            own = [proposal for proposal in proposals if proposal.group is group]
            pairs = [pair for proposal in own for pair in proposal.inner_products(averaging)]
            self.sums.append(_sums(pairs, like))

    def apply(self, thetas: Sequence[Tensor]) -> list[Tensor]:
        """Keep the fractions of the base's step, equation (8); see `Observation`."""
        pairs = list(zip(self._groups, thetas, strict=True))
        for group, theta in pairs:
            for proposal in self._proposals:
                if proposal.group is group:
                    proposal.apply(theta)
        self._proposals = []  # and with them the copies of the parameters
        return [_effective_lr(theta, group) for group, theta in pairs]


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
