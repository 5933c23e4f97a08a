"""Whether a rule can work: symptoms, counted on the device and rarely read on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from momo_wrap.engine.scalars import as_scalar
from momo_wrap.rules import ModelStats, StepDecision, StepRule

# The number of sampled steps between two host synchronizations.
WINDOW = 50
# The sums over sampled steps, before those of the rule's symptoms.
_OWN = ("none", "whole", "to_bound", "gap", "first_gap")


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """How training with a wrapped optimizer is going; `MoMoWrapper.diagnosis()` returns it.

    `print` shows it as a table. Values have the sign of the user's objective.

    Attributes:
        title: The rule and the base.
        steps: The number of steps taken, including those before a checkpoint.
        loss: The loss of the last step; like the next two, NaN before the first step.
        value: h/ρ, the value of the momentum model before that step.
        lower_bound: f*, the bound that the step used.
        thetas: The fraction of the base's step that was taken, one value or one per parameter
            group.
        effective_lrs: θα of each parameter group.
        lrs: α of each parameter group, NaN for a base without learning rates.
        sampled: The number of sampled steps behind the next two values and the symptoms.
        share_none: The share of the sampled steps with θ = 0, in [0, 1].
        share_whole: The share with θ = 1.
        symptoms: The symptoms in more than half of the sampled steps, by the names of
            `StepRule.advice`: the cause, and what to write instead.
    """

    title: str
    steps: int
    loss: float = math.nan
    value: float = math.nan
    lower_bound: float = math.nan
    thetas: tuple[float, ...] = ()
    effective_lrs: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    sampled: int = 0
    share_none: float = math.nan
    share_whole: float = math.nan
    symptoms: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        if not self.thetas:
            since = f" since the {self.steps} steps of the state that was loaded" * (self.steps > 0)
            return f"{self.title}: no step was taken yet{since}."
        shares = f"0 in {self.share_none:.0%}, 1 in {self.share_whole:.0%}; sampled: {self.sampled}"
        rows = {
            "loss": f"{self.loss:.6g}",
            "model of the loss": f"{self.value:.6g}",
            "lower bound": f"{self.lower_bound:.6g}",
            "θ": f"{_listed(self.thetas)} ({shares})",
            "effective lr": f"{_listed(self.effective_lrs)} (lr {_listed(self.lrs)})",
        }
        lines = [f"{self.title}, {self.steps} steps"]
        lines += [f"  {name:<18} {value}" for name, value in rows.items()]
        lines += [f"  {name}: {advice}" for name, advice in self.symptoms.items()]
        return "\n".join(lines if self.symptoms else [*lines, "  no symptoms"])


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


class Tally:
    """Counts of the symptoms over the sampled steps, in one tensor on the device.

    They are not saved, and start from 0 when the rule is set.

    Attributes:
        samples: The number of steps in the tensor.
        warned: The names of the symptoms that a warning has named.
        lacks_momentum: Whether the base averages neither gradients nor parameters, at the last
            step.
    """

    def __init__(self) -> None:
        self.warned: set[str] = set()
        self.start_rule()

    def start_rule(self) -> None:
        """Reset the counts, but not `warned`."""
        self.samples, self.lacks_momentum = 0, False
        self._sums: Tensor | None = None
        self._names: list[str] = []
        self._last: list[float] = []  # the sums of the last window
        self._first_gap = math.nan  # of the first
        self._start = math.nan  # the gap at the first step in it
        self._stalled = self._no_lower = False  # the results of the last windows
        self._is_high = False

    def add(self, rule: StepRule, stats: ModelStats, decision: StepDecision) -> None:
        """Count a step, without host synchronization.

        Args:
            rule: The step rule.
            stats: Its argument.
            decision: Its return value.
        """
        row, names = _row(rule, stats, decision, first=not self.samples and not self._last)
        if self._sums is None or names != self._names or self._sums.device != row.device:
            self.start_rule()
            self._sums, self._names = torch.zeros_like(row), names
        # Not in place: it may be an inference tensor.
        self._sums = self._sums + row
        self.samples += 1

    def read(self) -> None:
        """Copy the sums of a full window to the host, and start a new window."""
        assert self._sums is not None
        sums = [*self._sums.tolist()]
        _, _, to_bound, gap, start = sums[: len(_OWN)]
        if not self._last:
            self._first_gap, self._start = gap, start
        # Not near the bound, where the last digits of a loss do not fall either.
        elif to_bound > WINDOW / 2:
            self._stalled = self._last[3] <= gap and gap > 0.01 * self._first_gap
        else:
            self._stalled = False
        was_high, self._is_high = self._is_high, 0 < 0.98 * self._start <= gap / WINDOW < math.inf
        self._no_lower = was_high and self._is_high
        self._last, self.samples = sums, 0
        self._sums = torch.zeros_like(self._sums)

    def held(self, rule: StepRule) -> list[str]:
        """Return the names of the symptoms in most steps of the last full window."""
        found = _most(self._names, self._last, WINDOW) + self.others(rule)
        return found or ["no_lower"] * self._no_lower  # the others say why

    def summary(
        self, rule: StepRule, stats: ModelStats, decision: StepDecision
    ) -> tuple[int, list[float], list[str]]:
        """Return the number of samples, the sums of `_OWN`, and the symptoms, read on the host.

        The samples are the last full window and later ones, or else the last step.
        """
        parts = [self._last] if self._last else []
        samples, names = self.samples + len(parts) * WINDOW, self._names
        if self.samples and self._sums is not None:
            parts.append(self._sums.tolist())
        if not samples:
            row, names = _row(rule, stats, decision, first=True)
            samples, parts = 1, [row.tolist()]
        sums = [sum(values) for values in zip(*parts, strict=True)]
        found = _most(names, sums, samples) + self.others(rule)
        return samples, sums, found or ["no_lower"] * self._no_lower

    def others(self, rule: StepRule) -> list[str]:
        """Return the names of the symptoms that a single step does not show."""
        cuts = math.isfinite(rule.lower_bound)  # otherwise no step is shortened
        lacks = rule.needs_momentum and self.lacks_momentum and cuts
        return ["no_progress"] * self._stalled + ["no_momentum"] * lacks


def _row(
    rule: StepRule, stats: ModelStats, decision: StepDecision, *, first: bool
) -> tuple[Tensor, list[str]]:
    """Return the values of a step, those of `_OWN` and of the symptoms, and the symptoms' names."""
    theta, bound = decision.theta, stats.lower_bound
    gap = stats.mean_loss - bound
    predicted = theta.amin() * stats.predicted_decrease
    symptoms = rule.symptoms(stats, decision)
    values = [
        (theta == 0).all(),
        (theta == 1).all(),
        # The prediction closes at least half of the gap to the bound.
        (predicted >= (stats.value_after_decay - bound) / 2) & (predicted > 0),
        gap,
        gap if first else torch.zeros_like(gap),
        *(_checked(name, value, rule) for name, value in symptoms.items()),
    ]
    return torch.stack([as_scalar(value, stats.loss) for value in values]), [*symptoms]


def _checked(name: str, value: object, rule: StepRule) -> Tensor:
    """Return a symptom; raise if it can't be counted or has no advice."""
    kind = type(rule).__name__
    if not (isinstance(value, Tensor) and value.dim() == 0):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{kind}.symptoms has {name!r} of {found}, expected a 0-dim tensor that is True if the "
            "step shows the symptom. Compute it from the tensors in stats and decision."
        )
    if name not in rule.advice:
        raise ValueError(
            f"{kind}.symptoms has {name!r}, expected a name in {kind}.advice. Write advice = "
            f"{{**StepRule.advice, {name!r}: '...'}} in the class, with the cause and the remedy."
        )
    return value


def _most(names: Sequence[str], sums: Sequence[float], samples: int) -> list[str]:
    """Return the names of the symptoms in more than half of the samples."""
    pairs = zip(names, sums[len(_OWN) :], strict=False)
    return [name for name, count in pairs if count > samples / 2]
