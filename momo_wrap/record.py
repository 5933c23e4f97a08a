"""What is known of a step after it was taken."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from momo_wrap.engine.scalars import as_scalar
from momo_wrap.rules import ModelStats, StepDecision


@dataclass(frozen=True)
class StepRecord:
    """What happened in a step, as tensors without host synchronisation, 0-dim but for θ.

    Values are in the sign of the user's objective, also with `maximize=True`.

    Attributes:
        theta: The fraction of the base's step that was taken, in [0, 1]; of shape [groups] where
            the rule chose one for each parameter group, 0-dim with all others.
        theta_uncapped: The same before it was cut at 1.
        value_after_decay: h/ρ, the loss that the momentum model had before the step, with λ ‖x‖²/2
            where the base adds its weight decay to the gradients.
        predicted_decrease: N/ρ, by how much the whole step of the base would have lowered it
            (with `maximize=True`: raised it).
        lower_bound: f*, the bound that was aimed at.
        loss: The loss that was given.
    """

    theta: Tensor
    theta_uncapped: Tensor
    value_after_decay: Tensor
    predicted_decrease: Tensor
    lower_bound: Tensor
    loss: Tensor


@dataclass
class Outcome:
    """What a wrapper tells of its last step; None before the first."""

    # And the loss that was given, in the sense of minimisation, and the sign of the objective.
    of_step: tuple[ModelStats, StepDecision, Tensor, float] | None = None
    effective_lrs: Tensor | None = None  # θα of each parameter group, [groups]
    skipped: int = 0


class Results:
    """What an optimizer tells of its last step."""

    _outcome: Outcome

    @property
    def last_step(self) -> StepRecord | None:
        """The `StepRecord` of the last step; None before the first."""
        if self._outcome.of_step is None:
            return None
        stats, decision, loss, sign = self._outcome.of_step
        bound = as_scalar(decision.lower_bound, stats.loss)
        values = (stats.value_after_decay, bound, loss)
        value, bound, loss = values if sign > 0 else [-value for value in values]
        return StepRecord(
            decision.theta, decision.theta_uncapped, value, stats.predicted_decrease, bound, loss
        )

    @property
    def skipped_steps(self) -> int:
        """The number of steps that were skipped since the wrapper was made."""
        return self._outcome.skipped

    def effective_lrs(self) -> list[Tensor]:
        """Return the learning rates θα that the last step amounted to; empty before the first."""
        lrs = self._outcome.effective_lrs
        return [] if lrs is None else list(lrs.unbind())
