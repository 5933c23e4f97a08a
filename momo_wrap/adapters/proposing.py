"""The adapter for any optimizer: let it take its full step, then keep a fraction of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.anchored import (
    ANCHOR,
    DRIFT,
    PROPOSED_ANCHOR,
    Anchored,
    DriftOfGroup,
    check_anchor,
    offsets,
    part_of_the_way,
)
from momo_wrap.adapters.base import (
    Adapter,
    BaseStep,
    ParamGroup,
    State,
    check_shape,
    maximizes,
)
from momo_wrap.adapters.planned_step import PlannedStep, global_hooks, step_without_global_hooks
from momo_wrap.adapters.proposal import GRAD_AVG_KEY, Proposal
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging
from momo_wrap.rules import WeightDecayForm

AveragingOfGroup: TypeAlias = Callable[[ParamGroup, State], Averaging]


class ProposingAdapter(Adapter):
    r"""Lets the base take its full step s = x_new - x_old, and keeps the fraction θ of it.

        θ = clip( (f̄ + e - ρ f*) / (-⟨d, s⟩) , 0, 1 ) ,    x = x_old + θ s                     (8)

    It needs no preconditioner, only an averaged gradient d: the base's if it has one, else one that
    the adapter keeps. The base's weight decay is part of its step, in the base's form, and is
    shortened with it. If a `ReadingAdapter` exists and nothing decays, both take the same steps.

    It costs one copy of the parameters during a step; without `momentum` a second one, the average
    of gradients, which stays; and a third one during a step if the direction has a term in the
    gradient, or if `averaging` describes an average that the adapter keeps. Parameters without a
    gradient are left to the base.

    Args:
        momentum: The name in the optimizer state of the base's average of gradients (not
            preconditioned, without weight decay); None: the adapter keeps an average.
        beta: The decay of the average, in [0, 1); None: 0.9. The base's average is assumed to start
            at 0, B_k = β B_{k-1} + (1 - β) g_k; the adapter's starts with the first gradient.
            Without `momentum`, `beta=0` makes d the gradient.
        averaging: Instead of `beta`, a function from a parameter group and the optimizer state to
            the averaging of the group.
        iterates: Names in the optimizer state of further copies of the parameters that move with
            them. Their moves are shortened by θ too, and each costs a copy. One that does not exist
            yet starts at the parameter.
        anchor: The name of an iterate, such as the sequence z of a schedule-free method. The model
            is taken at the anchor and along its move, equations (19) and (20); `iterates` need not
            contain it. `beta` is then 0 by default. None: the parameters.
        drift: A function from a parameter group after the step to c: the parameters move towards
            the anchor by the fraction c of the distance, and this part of their move is not
            shortened. None: their whole move is shortened.

    Raises:
        TypeError: `momentum` or `anchor` is not a string, or `drift` comes without an anchor.
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
        anchor: str | None = None,
        drift: DriftOfGroup | None = None,
    ) -> None:
        if not (momentum is None or isinstance(momentum, str)):
            raise TypeError(
                "momentum must name an entry of the optimizer state, got "
                f"{type(momentum).__name__}. Write ProposingAdapter(momentum='exp_avg', beta=0.9)."
            )
        if beta is not None and averaging is not None:
            raise ValueError(
                "ProposingAdapter got beta and averaging, expected one of them. Put the decay into "
                "averaging: averaging=lambda group, state: Averaging(beta, 1 - beta)."
            )
        check_anchor(anchor, drift)
        if beta is None:
            beta = 0.9 if anchor is None else 0.0
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"beta must be at least 0 and below 1, got {beta}. Write "
                "ProposingAdapter(beta=0.9)."
            )
        self.momentum, self.beta, self.iterates = momentum, beta, tuple(iterates)
        self.anchor, self._averaging, self._drift = anchor, averaging, drift
        if anchor is not None and anchor not in self.iterates:
            self.iterates += (anchor,)
        self.keeps_averages = momentum is None and (averaging is not None or beta != 0.0)

    def __repr__(self) -> str:
        averaging = getattr(self._averaging, "__qualname__", repr(self._averaging))
        how = f"beta={self.beta}" if self._averaging is None else f"averaging={averaging}"
        iterates = f", iterates={self.iterates}" if self.iterates else ""
        anchor = "" if self.anchor is None else f", anchor={self.anchor!r}"
        drift = getattr(self._drift, "__qualname__", repr(self._drift))
        drift = "" if self._drift is None else f", drift={drift}"
        return f"ProposingAdapter(momentum={self.momentum!r}, {how}{iterates}{anchor}{drift})"

    def memory(self, base: Optimizer) -> int:
        """Return how many bytes a step needs beyond the base's; the average stays after the step.

        Args:
            base: The base optimizer.
        """
        size = 0
        for group in base.param_groups:
            gradients = self._keeps_gradients(self.averaging(group, base.state))
            copies = 1 + len(self.iterates) + self.keeps_averages + gradients
            size += copies * sum(p.nbytes for p in group["params"] if not is_lazy(p))
        return size

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients at this step; see `ReadingAdapter`."""
        if self._averaging is not None:
            return self._averaging(group, state)
        if self.momentum is None and self.beta == 0.0:
            return Averaging(decay=0.0, weight=1.0)
        first = 1.0 if self.momentum is None else None
        return Averaging(decay=self.beta, weight=1.0 - self.beta, first_weight=first)

    def _keeps_gradients(self, averaging: Averaging) -> bool:
        """Return whether gradients must be copied while the base steps."""
        if self.anchor is not None:
            return True
        depends_on_state = self.momentum is None and self._averaging is not None
        return averaging.uses_gradient or averaging.is_gradient or depends_on_state

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base's average already exists; see `Adapter`."""
        states = [base.state.get(param, {}) for param in group["params"]]
        return self.momentum is not None and any(self.momentum in state for state in states)

    def has_lost_average(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the average that the adapter keeps is missing; see `Adapter`."""
        states = [base.state.get(param, {}) for param in group["params"]]
        return self.keeps_averages and not any(GRAD_AVG_KEY in state for state in states)

    def moving(self, base: Optimizer, param: Tensor) -> Tensor:
        """Return the anchor of a parameter, or the parameter without one yet; see `Adapter`."""
        moving: Tensor = base.state.get(param, {}).get(self.anchor, param)
        return moving

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Raise for an average of another shape than the parameter's; see `Adapter`."""
        if GRAD_AVG_KEY in entry:
            check_shape(where, param, GRAD_AVG_KEY, entry[GRAD_AVG_KEY])

    def observe(
        self, base: Optimizer, weight_decay_form: WeightDecayForm, engine: Engine
    ) -> BaseStep:
        """Take the base's step, sum it up and put the parameters back; see `Adapter`."""
        groups, plan = base.param_groups, engine.plan
        averagings = [self.averaging(group, base.state) for group in groups]
        gradients = [self._keeps_gradients(averaging) for averaging in averagings]
        proposal = Proposal(base, plan, self.iterates)
        done = False
        try:
            proposal.start(gradients, average=self.keeps_averages)
            if self.keeps_averages and not any(gradients):
                proposal.update_average(averagings)
            step_without_global_hooks(base) if any(global_hooks) else base.step()
            averagings = [self.averaging(group, base.state) for group in groups]
            if self.keeps_averages and any(gradients):
                proposal.update_average(averagings)
            done = True
        finally:
            proposal.put_back(done=done)
        scalars = _buffer_scales(averagings, engine)
        if self.anchor is not None:
            drifts = [0.0 if self._drift is None else self._drift(group) for group in groups]
            scalars = [{**own, DRIFT: c} for own, c in zip(scalars, drifts, strict=True)]
        readings = proposal.readings(self.momentum, scalars, self.anchor)
        negate = maximizes(base, groups[0])
        step = PlannedStep(
            self if self.anchor is None else Anchored(),
            engine,
            readings,
            averagings,
            Rates.of(groups, None, plan.like),
            negate=negate,
            fleeting=frozenset({"proposed", ANCHOR, PROPOSED_ANCHOR}),
            moving=proposal.further_moves(),
        )
        if self.anchor is not None:
            anchors = [reading.tensors[ANCHOR] for reading in readings]
            step.offsets = offsets(engine, anchors, negate=negate)
        return step

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return no values besides those of the averaging; see `ReadingAdapter`."""
        return {}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = x - x_proposed of a block, for a learning rate of 1; see `ReadingAdapter`."""
        return block.flat("param") - block.flat("proposed")

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return x + θ (x_proposed - x), exactly x_proposed for θ = 1; see `ReadingAdapter`."""
        return part_of_the_way(block, block.flat("param"), pull)


def _buffer_scales(averagings: Sequence[Averaging], engine: Engine) -> list[dict[str, Scalar]]:
    """Return p of each group, from the wrapper's sum of the weights in the average."""
    if not any(averaging.bias_corrected for averaging in averagings):
        return [{}] * len(averagings)
    sums = engine.weight_sums(averagings).unbind()
    return [
        {"buffer_scale": a.buffer_scale / weight_sum if a.bias_corrected else a.buffer_scale}
        for a, weight_sum in zip(averagings, sums, strict=True)
    ]
