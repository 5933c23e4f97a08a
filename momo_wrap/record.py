"""The record of the last step, and the warnings of a wrapper."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.checks.warning import MoMoWarning, users_level
from momo_wrap.diagnosis import WINDOW, Diagnosis, Tally
from momo_wrap.distributed import ProcessGroup, ranks_of
from momo_wrap.engine.scalars import as_scalar
from momo_wrap.joint import members
from momo_wrap.rules import ModelStats, StepDecision, StepRule
from momo_wrap.state.memory import Memory

# Symptoms are counted at every so many steps.
SAMPLED_EVERY = 10


@dataclass(frozen=True)
class StepRecord:
    """What happened in a step: tensors, without host synchronization.

    All are 0-dim unless stated. Values have the sign of the user's objective, also with
    `maximize=True`.

    Attributes:
        theta: The fraction of the base's step that was taken, in [0, 1]; of shape [groups] if the
            rule chose one for each parameter group.
        theta_uncapped: θ before it was clipped at 1, of the same shape.
        value_after_decay: h/ρ, the loss in the momentum model before the step. It includes λ ‖x‖²/2
            if the base adds its weight decay to the gradients. If batches have their own bounds, it
            is the value for this batch.
        predicted_decrease: N/ρ, how much the full step of the base would have lowered that value
            (with `maximize=True`: raised it).
        lower_bound: f*, the bound that the step used; the bound of this batch if it has one.
        loss: The loss as given.
    """

    theta: Tensor
    theta_uncapped: Tensor
    value_after_decay: Tensor
    predicted_decrease: Tensor
    lower_bound: Tensor
    loss: Tensor


@dataclass
class Outcome:
    """What a wrapper reports about its last step; None before the first."""

    # And the given loss in the sense of minimization, the sign of the objective, and how far the
    # bound of the batch is above that of the rule; None: the batch had no bound.
    of_step: tuple[ModelStats, StepDecision, Tensor, float, Tensor | None] | None = None
    effective_lrs: Tensor | None = None  # θα of each parameter group, [groups]
    skipped: int = 0
    tally: Tally = field(default_factory=Tally)


class Results:
    """An optimizer that reports its last step and a diagnosis."""

    base: Optimizer
    rule: StepRule
    process_group: ProcessGroup
    param_groups: list[dict[str, Any]]
    _outcome: Outcome
    _memory: Memory

    @property
    def last_step(self) -> StepRecord | None:
        """The `StepRecord` of the last step; None before the first."""
        if self._outcome.of_step is None:
            return None
        stats, decision, loss, sign, shift = self._outcome.of_step
        value, bound = stats.value_after_decay, as_scalar(decision.lower_bound, stats.loss)
        if shift is not None:
            value, bound = value + shift, bound + shift
        values = (value, bound, loss)
        value, bound, loss = values if sign > 0 else [-value for value in values]
        return StepRecord(
            decision.theta, decision.theta_uncapped, value, stats.predicted_decrease, bound, loss
        )

    @property
    def skipped_steps(self) -> int:
        """The number of steps skipped since the wrapper was created."""
        return self._outcome.skipped

    def effective_lrs(self) -> list[Tensor]:
        """Return the 0-dim θα of each parameter group at the last step; empty before the first."""
        lrs = self._outcome.effective_lrs
        return [] if lrs is None else list(lrs.unbind())

    def diagnosis(self) -> Diagnosis:
        """Return how training is going, and the symptoms if the rule can't work.

        This is a host synchronization. It may be called at any time, even before the first step.

        Returns:
            A `Diagnosis` to print: values of the last step, how often θ was 0 and 1, and
            the current symptoms, each with its remedy.
        """
        last = self.last_step
        if last is None or self._outcome.of_step is None:
            return Diagnosis(self._title, self._memory.steps)
        stats, decision, *_ = self._outcome.of_step
        samples, sums, symptoms = self._outcome.tally.summary(self.rule, stats, decision)
        effective_lrs = torch.stack(self.effective_lrs()).tolist()
        lrs = [group.get("lr", math.nan) for group in self.param_groups[: len(effective_lrs)]]
        return Diagnosis(
            self._title,
            self._memory.steps,
            last.loss.item(),
            last.value_after_decay.item(),
            last.lower_bound.item(),
            tuple(last.theta.reshape(-1).tolist()),
            tuple(effective_lrs),
            tuple(float(lr) for lr in lrs),
            samples,
            sums[0] / samples,
            sums[1] / samples,
            {name: self.rule.advice[name] for name in symptoms},
        )

    def _sample(self, *, lacks_momentum: bool) -> None:
        """Count the symptoms of the last step; warn about persistent ones."""
        assert self._outcome.of_step is not None
        stats, decision, *_ = self._outcome.of_step
        if stats.loss.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return  # a replay would not run this
        tally = self._outcome.tally
        tally.add(self.rule, stats, decision)
        tally.lacks_momentum = lacks_momentum
        is_full = tally.samples == WINDOW
        if is_full:
            tally.read()
        for name in tally.held(self.rule) if is_full else tally.others(self.rule):
            if name not in tally.warned:
                tally.warned.add(name)
                self._warn(name, self.diagnosis() if is_full else None)

    def _warn(self, name: str, now: Diagnosis | None) -> None:
        """Warn about a symptom, on the first of several ranks, which all have the same numbers."""
        group = ranks_of(self.process_group)
        if group is not None and dist.get_rank(group) > 0:
            return
        found = (
            ""
            if now is None
            else (
                f", step {now.steps} (loss {now.loss:.4g}, lower bound {now.lower_bound:.4g}, "
                f"θ = 0 in {now.share_none:.0%} of the steps)"
            )
        )
        warnings.warn(
            f"{self._title}{found}: {self.rule.advice[name]} For more, "
            "print(optimizer.diagnosis()). To silence this warning, write "
            "warnings.filterwarnings('ignore', category=momo_wrap.MoMoWarning).",
            MoMoWarning,
            stacklevel=users_level(),
        )

    @property
    def _title(self) -> str:
        bases = ", ".join(type(member).__name__ for member in members(self.base))
        return f"{type(self.rule).__name__} over {bases}"
