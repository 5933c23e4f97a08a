"""The targets of the comparison, and whether they are met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from docs.evidence.comparing import (
    ONE_SETTING,
    at_one_setting,
    at_their_bests,
    narrower,
    tally,
    trained,
    widest,
)
from docs.evidence.measures import RULES, Comparison, bare_of, wrapped_by
from docs.evidence.tasks import HELD_OUT

NOISE = 2.0  # standard deviations over seeds that by which two bests may differ and count as equal


@dataclass(frozen=True)
class Verdict:
    """The measurement of a target, and whether it is met; None: there are no results yet."""

    measured: str
    met: bool | None


@dataclass(frozen=True)
class Target:
    """A target for one method, or for all methods with one rule.

    Attributes:
        claim: What is to hold.
        subject: Of what.
        check: Measures it in one schedule.
    """

    claim: str
    subject: str
    check: Callable[[Comparison], Verdict]

    def verdicts(self, comparisons: Mapping[str, Comparison]) -> dict[str, Verdict]:
        """Return the verdict in each schedule."""
        return {name: self.check(comparison) for name, comparison in comparisons.items()}


NONE_YET = Verdict("no results yet", None)


def check_tolerance(comparison: Comparison, method: str) -> Verdict:
    """The mean tolerance is to be twice that of the bare base, and never less."""
    tasks = comparison.common([method])
    if not tasks:
        return NONE_YET
    ratio = width_ratio(comparison, method, tasks)
    lost = narrower(comparison, method)
    able = trained(comparison, method)
    count = tally(len(lost), len(able), len(tasks) - len(able))
    measured = f"{ratio:.1f} x, narrower on {count}"
    if held_out := comparison.common([method], HELD_OUT):
        measured += f"; held out: {width_ratio(comparison, method, held_out):.1f} x, "
        measured += f"{sum(loss.task in HELD_OUT for loss in lost)} of "
        measured += f"{len(trained(comparison, method, HELD_OUT))}"
    return Verdict(measured, ratio >= 2 - 1e-9 and not lost)


def width_ratio(comparison: Comparison, method: str, tasks: Iterable[str]) -> float:
    """Return the mean tolerance over that of the bare base."""
    listed = list(tasks)
    own = comparison.mean_width(method, listed)
    bare = comparison.mean_width(bare_of(method), listed)
    return own / bare if bare else math.inf if own else 1.0


def check_one_setting(comparison: Comparison, methods: Iterable[str]) -> Verdict:
    """At one setting each task is to be near the best tuned run of the same base, bare."""
    present = [method for method in methods if comparison.common([method])]
    found = [at_one_setting(comparison, method, ONE_SETTING[method]) for method in present]
    if not found:
        return NONE_YET
    same, total = sum(f.near_same for f in found), sum(len(f.same_base) for f in found)
    every, pairs = sum(f.near_any for f in found), sum(len(f.any_base) for f in found)
    count = tally(same, total, pairs - total)
    return Verdict(f"{count}; against the best of all bases: {every} of {pairs}", same == total)


def check_best(comparison: Comparison, methods: Iterable[str]) -> Verdict:
    """The best value is to be no worse than that of the bare base, but for the noise of seeds."""
    every = [(method, task) for method in methods for task in comparison.common([method])]
    pairs = [pair for pair in every if comparison.trains(*pair)]
    if not every:
        return NONE_YET
    units = [at_their_bests(comparison, method, task)[1] for method, task in pairs]
    lost, clearly = (sum(unit < -noise for unit in units) for noise in (1.0, NOISE))
    won = sum(unit > NOISE for unit in units)
    count = tally(clearly, len(pairs), len(every) - len(pairs))
    measured = f"worse on {count} (by more than 1 unit: {lost}), better on {won}"
    return Verdict(measured, not clearly)


def check_widest(comparison: Comparison, method: str) -> Verdict:
    """The tolerance is to be the widest, among tuners, on most tasks."""
    found = widest(comparison, method)
    total = len(found.alone) + len(found.shared) + len(found.behind)
    if not total:
        return NONE_YET
    first = len(found.alone) + len(found.shared)
    return Verdict(f"{first} of {total}, alone on {len(found.alone)}", 2 * first > total)


def targets() -> list[Target]:
    """Return all targets."""
    twice = "twice as tolerant as bare, never narrower"
    near = "near tuned bare at one setting"
    best = "best no worse than bare's, within noise"
    most = "as tolerant as any tuner on most tasks"
    found = []
    for base in ("Adam", "AdamW", "SGD-M"):
        for rule in RULES:
            method = f"{base} + {rule}"
            found.append(Target(twice, method, partial(check_tolerance, method=method)))
    groups = {
        **{
            f"{base} + {rule}": [f"{base} + {rule}"]
            for base in ("AdamW", "SGD-M")
            for rule in RULES
        },
        **{f"all bases + {rule}": wrapped_by(rule) for rule in RULES},
    }
    for claim, check in ((near, check_one_setting), (best, check_best)):
        found += [Target(claim, name, partial(check, methods=m)) for name, m in groups.items()]
    for rule in RULES:
        method = f"AdamW + {rule}"
        found.append(Target(most, method, partial(check_widest, method=method)))
    return found
