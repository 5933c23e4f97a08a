"""How methods compare: at one setting for all tasks, at their best, and by tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from measures import Comparison, bare_of, gain, mean, wrapped_by
from methods import TUNERS
from plan import LEARNING_RATES
from tasks import SCORED

# Caps that are far too high, and what the authors of tuners recommend, at the nearest learning rate
# of the grid.
ONE_SETTING = {
    **dict.fromkeys(wrapped_by("MoMo"), 1.0),
    "SGD-M + MoMo": 100.0,
    **dict.fromkeys(wrapped_by("TrustedMoMo"), 100.0),
    "Prodigy": 1.0,
    "D-Adaptation": 1.0,
    "Mechanic": 0.01,
    "schedule-free AdamW": 0.00215,
    "schedule-free SGD": 1.0,
}
# No task counts for more than this in a mean of shortfalls, also where a run failed.
LARGEST_SHORTFALL = 10.0
SMALLEST_NOISE = 0.1  # in points or %: less is taken for this


def near(task: str) -> float:
    """Return how far from a tuned run is still near: 1 point of score, 2 % of loss."""
    return 1.0 if task in SCORED else 2.0


def is_near(task: str, difference: float) -> bool:
    """Tell whether a gain is none, or a loss that is small."""
    return difference >= -near(task) - 1e-4


@dataclass(frozen=True)
class OneSetting:
    """A method at one learning rate, on all tasks that it has results of.

    Attributes:
        lr: The learning rate.
        same_base: By task, the gain over the best tuned run of the same base, bare.
        any_base: That over the best of all bare optimizers.
    """

    lr: float
    same_base: dict[str, float]
    any_base: dict[str, float]

    @property
    def shortfall(self) -> float:
        """The mean shortfall against all bare ones, in units of what is near."""
        lacks = [max(-found / near(task), 0.0) for task, found in self.any_base.items()]
        return mean(min(lack, LARGEST_SHORTFALL) for lack in lacks)


def at_one_setting(comparison: Comparison, method: str, lr: float) -> OneSetting:
    """Return how a method does at one learning rate.

    Args:
        comparison: The results.
        method: The method; it counts on one task at least.
        lr: A learning rate of the grid.
    """
    same, every = {}, {}
    for task in comparison.common([method]):
        value = comparison.value(method, task, lr)
        base = comparison.cells[bare_of(method), task].best
        same[task] = gain(task, value, base)
        every[task] = gain(task, value, comparison.best_bare(task))
    return OneSetting(lr, same, every)


def in_hindsight(
    comparison: Comparison, method: str, rates: Sequence[float] = LEARNING_RATES
) -> OneSetting:
    """Return how a method does at the learning rate that turned out best for all tasks together."""
    settings = [at_one_setting(comparison, method, lr) for lr in rates]
    return min(settings, key=lambda setting: setting.shortfall)


def at_their_bests(comparison: Comparison, method: str, task: str) -> tuple[float, float]:
    """Return the gain of a method over its bare base, each at its best, and that in units of noise.

    The noise is the root mean square of both standard deviations over seeds.
    """
    own, bare = comparison.cells[method, task], comparison.cells[bare_of(method), task]
    variances = [cell.deviation**2 for cell in (own, bare) if math.isfinite(cell.deviation)]
    deviation = math.sqrt(mean(variances)) if variances else 0.0
    scale = 100.0 if task in SCORED else 100.0 / bare.best
    difference = gain(task, own.best, bare.best)
    return difference, difference / max(scale * deviation, SMALLEST_NOISE)


@dataclass(frozen=True)
class Narrower:
    """A task on which a method tolerates less than its bare base; -inf decades are none at all."""

    task: str
    decades: float
    bare: float


def narrower(comparison: Comparison, method: str, kind: str = "decades") -> list[Narrower]:
    """Return the tasks on which a method tolerates less than its bare base.

    Args:
        comparison: The results.
        method: The method.
        kind: Which of the tolerances of `Cell`.
    """
    base = bare_of(method)
    found = []
    for task in comparison.common([method, base]):
        own, bare = (getattr(comparison.cells[name, task], kind) for name in (method, base))
        if own < bare:
            found.append(Narrower(task, own, bare))
    return found


@dataclass(frozen=True)
class Widest:
    """On which tasks a method tolerates most among rivals.

    Attributes:
        alone: The tasks on which all others tolerate less.
        shared: Those on which another tolerates as much.
        behind: Those on which another tolerates more, or on which none tolerates anything.
    """

    alone: list[str]
    shared: list[str]
    behind: list[str]


def widest(comparison: Comparison, method: str, rivals: Sequence[str] = tuple(TUNERS)) -> Widest:
    """Compare the tolerance of a method with that of rivals, on the tasks that all have."""
    places: dict[str, list[str]] = {"alone": [], "shared": [], "behind": []}
    for task in comparison.common([method, *rivals]):
        own = comparison.cells[method, task].decades
        most = max(comparison.cells[rival, task].decades for rival in rivals)
        place = "alone" if own > most else "shared" if own == most > -math.inf else "behind"
        places[place].append(task)
    return Widest(**places)
