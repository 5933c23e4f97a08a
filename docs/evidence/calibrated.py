"""Against a calibrated baseline: one learning rate, chosen on some tasks and judged on the others.

That is what Kasimbeg et al., "Training without hyperparameters", arXiv 2505.24005, hold methods
without hyperparameters against: not the best learning rate of each task, which is unknown
beforehand, but the one that was best on other tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from docs.evidence.comparing import (
    ONE_SETTING,
    OneSetting,
    at_one_setting,
    in_hindsight,
    in_noise,
    shortfall,
    trained,
)
from docs.evidence.measures import RULES, Comparison, bare_of
from docs.evidence.methods import BARE
from docs.evidence.plan import LEARNING_RATES
from docs.evidence.sections import families, table
from docs.evidence.targets import NOISE
from docs.evidence.tasks import DESIGN, HELD_OUT


def calibrated_lr(
    comparison: Comparison, method: str, tasks: Iterable[str] = tuple(DESIGN)
) -> float:
    """Return the one learning rate that is best over tasks.

    It is that with the smallest mean shortfall behind the bare base at its best learning rate for
    each task; of several the lowest.

    Args:
        comparison: The results.
        method: The method.
        tasks: The tasks that it is chosen on.

    Raises:
        ValueError: Runs of the method are missing on one of the tasks.
    """
    chosen = list(tasks)
    if missing := [task for task in chosen if (method, task) not in comparison.cells]:
        raise ValueError(
            f"The learning rate of {method} is chosen on {chosen}, but runs on {missing} are "
            "missing. docs/evidence/sweeps.py makes them."
        )

    def lacks(lr: float) -> float:
        return shortfall(at_one_setting(comparison, method, lr, chosen).same_base)

    return min(LEARNING_RATES, key=lacks)


@dataclass(frozen=True)
class Standing:
    """On how many tasks a method is ahead of another beyond the noise of seeds, level, behind."""

    ahead: int
    level: int
    behind: int

    def __str__(self) -> str:
        return f"{self.ahead} / {self.level} / {self.behind}"


def standing(
    comparison: Comparison,
    own: tuple[str, float],
    other: tuple[str, float],
    tasks: Iterable[str] = tuple(HELD_OUT),
) -> Standing:
    """Compare two methods, each at one learning rate, on the tasks on which the base trains.

    Args:
        comparison: The results.
        own: A method and its learning rate.
        other: What it is compared with.
        tasks: The tasks.
    """
    units = [in_noise(comparison, t, own, other)[1] for t in trained(comparison, own[0], tasks)]
    ahead, behind = sum(u > NOISE for u in units), sum(u < -NOISE for u in units)
    return Standing(ahead, len(units) - ahead - behind, behind)


def in_short(comparisons: Mapping[str, Comparison]) -> str:
    """Put the calibrated bare bases beside those with a rule at a cap that was never chosen."""
    complete = {name: c for name, c in comparisons.items() if is_complete(c)}
    columns = ["", *(f" + {rule}" for rule in RULES)]
    head = ["near tuned bare, of the held-out tasks"]
    head += [
        f"{form.strip(' +') or 'bare, calibrated'}, {name}" for form in columns for name in complete
    ]
    rows = []
    for base in BARE:
        cells = [
            str(held_out(c, base + form)) if has_all(c, base + form) else ""
            for form in columns
            for c in complete.values()
        ]
        rows.append([base, *cells])
    return table(head, rows) if complete else "There are no complete results yet."


def held_out(comparison: Comparison, method: str) -> OneSetting:
    """Return how a method does on the held-out tasks at its one setting.

    That is the one of `ONE_SETTING`; for a bare base, the best on the design tasks.
    """
    lr = ONE_SETTING.get(method) or calibrated_lr(comparison, method)
    return at_one_setting(comparison, method, lr, HELD_OUT)


def section(comparisons: Mapping[str, Comparison]) -> str:
    """Hold all methods at one learning rate against the calibrated bare bases."""
    parts = [
        f"**Schedule: {name}**\n\n{in_words(c)}\n\n{_table(c)}"
        for name, c in comparisons.items()
        if is_complete(c)
    ]
    return "\n\n".join(parts) or "There are no complete results yet."


def is_complete(comparison: Comparison) -> bool:
    """Tell whether all tasks of both kinds count."""
    return {*DESIGN, *HELD_OUT} <= set(comparison.tasks)


def in_words(comparison: Comparison) -> str:
    """Say on how many of all tasks the bare bases are near at the best lr in hindsight."""
    found = {base: in_hindsight(comparison, base) for base in BARE}
    counts = [f"{base} on {setting} (at {setting.lr:g})" for base, setting in found.items()]
    return "Bare at the one learning rate that is best in hindsight: " + "; ".join(counts) + "."


def _table(comparison: Comparison) -> str:
    head = ["method", "fixed lr", "near", "shortfall", "ahead / level / behind"]
    head += ["lr chosen on design tasks", "near", "shortfall"]
    rows = [_row(comparison, m) for m in families(comparison) if has_all(comparison, m)]
    return table(head, rows)


def has_all(comparison: Comparison, method: str) -> bool:
    """Tell whether a method counts on all tasks of both kinds."""
    needed = {*DESIGN, *HELD_OUT}
    return needed <= set(comparison.common([method]))


def _row(comparison: Comparison, method: str) -> list[str]:
    chosen = calibrated_lr(comparison, method)
    fixed = [""] * 4
    if method in ONE_SETTING:
        lr, base = ONE_SETTING[method], bare_of(method)
        other = (base, calibrated_lr(comparison, base))
        against = str(standing(comparison, (method, lr), other))
        fixed = [*_cells(at_one_setting(comparison, method, lr, HELD_OUT)), against]
    return [method, *fixed, *_cells(at_one_setting(comparison, method, chosen, HELD_OUT))]


def _cells(found: OneSetting) -> list[str]:
    return [f"{found.lr:g}", str(found), f"{shortfall(found.same_base):.1f}"]
