"""How methods compare: at one setting for all tasks, at their best, and by tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from docs.evidence.measures import Comparison, bare_of, gain, mean, wrapped_by
from docs.evidence.methods import TUNERS
from docs.evidence.plan import LEARNING_RATES
from docs.evidence.tasks import SCORED

# Caps that are far too high, and the recommendations for the tuners, at the nearest learning rate
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
    "schedule-free Prodigy": 1.0,
}
# No task counts for more than this in a mean of shortfalls, also where a run failed.
LARGEST_SHORTFALL = 10.0
SMALLEST_NOISE = 0.1  # in points or %: less is taken for this


def near(task: str) -> float:
    """Return how far from a tuned run of a task is still near; see `margin`."""
    return margin(is_score=task in SCORED)


def margin(*, is_score: bool) -> float:
    """Return how far from a tuned run is still near: 1 point of score, 2 % of loss."""
    return 1.0 if is_score else 2.0


def is_near(task: str, difference: float) -> bool:
    """Tell whether a gain is none, or a loss that is small."""
    return is_within(difference, near(task))


def is_within(difference: float, margin: float) -> bool:
    """Tell whether a gain is none, or a loss that is at most a margin, but for rounding."""
    return difference >= -margin - 1e-4


def tally(count: int, total: int, never: int) -> str:
    """Return a count, and the tasks that are excluded because the base never trains on them."""
    return f"{count} of {total}" + f", {never} never trains" * (never > 0)


def shortfall(gains: Mapping[str, float]) -> float:
    """Return the mean shortfall over tasks, in units, from gains by task."""
    return mean_lack(found / near(task) for task, found in gains.items())


def mean_lack(units: Iterable[float]) -> float:
    """Return the mean shortfall, from gains in units."""
    return mean(min(max(-unit, 0.0), LARGEST_SHORTFALL) for unit in units)


@dataclass(frozen=True)
class OneSetting:
    """A method at one learning rate, on all tasks that it has results of.

    Attributes:
        lr: The learning rate.
        same_base: By task, the gain over the best tuned run of the same base, bare; without the
            tasks on which that never trains.
        any_base: That over the best of all bare optimizers.
        never: The tasks on which the bare base never trains.
    """

    lr: float
    same_base: dict[str, float]
    any_base: dict[str, float]
    never: list[str]

    @property
    def near_same(self) -> int:
        """On how many tasks the method is near its own base, tuned."""
        return sum(is_near(*item) for item in self.same_base.items())

    @property
    def near_any(self) -> int:
        """On how many tasks the method is near the best of all bare optimizers."""
        return sum(is_near(*item) for item in self.any_base.items())

    def __str__(self) -> str:
        return tally(self.near_same, len(self.same_base), len(self.never))


def at_one_setting(
    comparison: Comparison, method: str, lr: float, tasks: Iterable[str] | None = None
) -> OneSetting:
    """Return how a method does at one learning rate.

    Args:
        comparison: The results.
        method: The method; it counts on one task at least.
        lr: A learning rate of the grid.
        tasks: The tasks; None: all.
    """
    same, every, never = {}, {}, []
    for task in comparison.common([method], tasks):
        value = comparison.value(method, task, lr)
        every[task] = gain(task, value, comparison.best_bare(task))
        if comparison.trains(method, task):
            same[task] = gain(task, value, comparison.cells[bare_of(method), task].best)
        else:
            never.append(task)
    return OneSetting(lr, same, every, never)


def in_hindsight(
    comparison: Comparison, method: str, rates: Sequence[float] = LEARNING_RATES
) -> OneSetting:
    """Return how a method does at the learning rate that turned out best for all tasks together."""
    settings = [at_one_setting(comparison, method, lr) for lr in rates]
    return min(settings, key=lambda setting: shortfall(setting.any_base))


def in_noise(
    comparison: Comparison, task: str, own: tuple[str, float], other: tuple[str, float]
) -> tuple[float, float]:
    """Return the gain of one method and learning rate over another, and that in units of noise.

    The noise is the root mean square of both standard deviations over seeds.

    Args:
        comparison: The results.
        task: The task.
        own: A method and its learning rate.
        other: What it is compared with.
    """
    (value, reference) = (comparison.value(method, task, lr) for method, lr in (own, other))
    deviations = [comparison.deviation(method, task, lr) for method, lr in (own, other)]
    variances = [deviation**2 for deviation in deviations if math.isfinite(deviation)]
    noise = math.sqrt(mean(variances)) if variances else 0.0
    scale = 100.0 if task in SCORED else 100.0 / reference
    difference = gain(task, value, reference)
    return difference, difference / max(scale * noise, SMALLEST_NOISE)


def at_their_bests(comparison: Comparison, method: str, task: str) -> tuple[float, float]:
    """Return the gain of a method over its bare base, each at its best, and in units of noise."""
    base = bare_of(method)
    own, bare = ((m, comparison.cells[m, task].best_lr) for m in (method, base))
    return in_noise(comparison, task, own, bare)


def trained(comparison: Comparison, method: str, tasks: Iterable[str] | None = None) -> list[str]:
    """Return the tasks, of those given or of all, on which the base of a method trains."""
    return [t for t in comparison.common([method], tasks) if comparison.trains(method, t)]


@dataclass(frozen=True)
class Narrower:
    """A task on which a method tolerates less than its bare base; -inf decades are none at all."""

    task: str
    decades: float
    bare: float


def narrower(comparison: Comparison, method: str, kind: str = "decades") -> list[Narrower]:
    """Return the tasks on which a method tolerates less than its bare base, if that trains.

    Args:
        comparison: The results.
        method: The method.
        kind: Which of the tolerances of `Cell`.
    """
    base = bare_of(method)
    found = []
    for task in trained(comparison, method):
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
