"""The adapter for any optimizer: let it take its whole step, then keep a fraction of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, BaseStep, ParamGroup, State, check_shape, maximizes
from momo_wrap.adapters.planned_step import PlannedStep
from momo_wrap.adapters.proposal import GRAD_AVG_KEY, Proposal, Proposed
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging
from momo_wrap.rules import WeightDecayForm

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
    keeps_averages = True

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

    def observe(
        self, base: Optimizer, weight_decay_form: WeightDecayForm, engine: Engine
    ) -> BaseStep:
        """Take the base's step, sum it up and put the parameters back; see `Adapter`."""
        groups, plan = base.param_groups, engine.plan
        summed = [Proposal(base, plan, cell, self.iterates) for cell in plan.cells]
        # A base may move these too: by their momentum, or because it takes them to have zeros.
        others = [Proposal(base, plan, cell, self.iterates) for cell in plan.others]
        done = False
        try:
            self._start(base, summed, others)
            base.step()
            averagings = [self.averaging(group, base.state) for group in groups]
            for proposal in summed:
                if self._averages_after(averagings[proposal.group]):
                    proposal.update_average(averagings[proposal.group])
            done = True
        finally:
            for proposal in (*summed, *others):
                proposal.put_back(done=done)
        scales = self._buffer_scales(averagings, engine)
        readings = [p.reading(self.momentum, scales[p.group]) for p in summed]
        rates = Rates.of(groups, None, plan.like)
        moving = [part for p in summed for part in p.further_moves(with_params=False)]
        moving += [part for p in others for part in p.further_moves(with_params=True)]
        return PlannedStep(
            Proposed(),
            engine,
            readings,
            averagings,
            rates,
            negate=maximizes(base, groups[0]),
            fleeting=frozenset({"proposed"}),
            moving=moving,
        )

    def _start(self, base: Optimizer, summed: list[Proposal], others: list[Proposal]) -> None:
        for proposal in summed:
            averaging = self.averaging(base.param_groups[proposal.group], base.state)
            average, gradients = self.keeps_average(averaging), self.keeps_gradients(averaging)
            proposal.start(average=average, gradients=gradients)
            if average and not gradients:
                proposal.update_average(averaging)
        for proposal in others:
            proposal.start(average=False, gradients=False)

    def _averages_after(self, averaging: Averaging) -> bool:
        """Return whether the average is updated after the base's step, with kept gradients."""
        return self.keeps_average(averaging) and self.keeps_gradients(averaging)

    def _buffer_scales(
        self, averagings: Sequence[Averaging], engine: Engine
    ) -> list[dict[str, Scalar]]:
        """Return p of each group, with the wrapper's own count of what is in the average."""
        if not any(averaging.bias_corrected for averaging in averagings):
            return [{}] * len(averagings)
        sums = engine.weight_sums(averagings).unbind()
        return [
            {"buffer_scale": a.buffer_scale / weight_sum if a.bias_corrected else a.buffer_scale}
            for a, weight_sum in zip(averagings, sums, strict=True)
        ]

    def keeps_average(self, averaging: Averaging) -> bool:
        """Return whether the average of gradients is the adapter's own."""
        may_change = self._averaging is not None
        return self.momentum is None and (may_change or not averaging.is_gradient)

    def keeps_gradients(self, averaging: Averaging) -> bool:
        """Return whether the gradients have to be kept while the base steps."""
        depends_on_state = self.momentum is None and self._averaging is not None
        return averaging.uses_gradient or averaging.is_gradient or depends_on_state

    def has_lost_average(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the average that the adapter keeps is missing; see `Adapter`."""
        if any(GRAD_AVG_KEY in base.state.get(param, {}) for param in group["params"]):
            return False
        return self.keeps_average(self.averaging(group, base.state))

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Refuse an average of another shape than the parameter's; see `Adapter`."""
        if GRAD_AVG_KEY in entry:
            check_shape(where, param, GRAD_AVG_KEY, entry[GRAD_AVG_KEY])
