"""Against a calibrated baseline: one learning rate, chosen on some tasks and judged on the others.

That is what Kasimbeg et al., "Training without hyperparameters", arXiv 2505.24005, hold methods
without hyperparameters against: not the best learning rate of each task, which nobody knows
beforehand, but the one that was best on other tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from comparing import (
    ONE_SETTING,
    OneSetting,
    at_one_setting,
    in_hindsight,
    in_noise,
    shortfall,
    trained,
)
from measures import Comparison, bare_of
from methods import BARE
from plan import LEARNING_RATES
from sections import families, table
from targets import NOISE
from tasks import DESIGN, HELD_OUT


def calibrated_lr(
    comparison: Comparison, method: str, tasks: Iterable[str] = tuple(DESIGN)
) -> float:
    """Return the one learning rate that is best over tasks.

    It is that with the smallest mean shortfall behind the bare base at its best learning rate for
    each task; of several the lowest.

    Args:
        comparison: The results.
        method: The method; it counts on one of the tasks at least.
        tasks: The tasks that it is chosen on.
    """
    chosen = list(tasks)

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
    head = ["on the held-out tasks", "fixed lr", "near", "shortfall", "against calibrated bare"]
    head += ["lr chosen on design tasks", "near", "shortfall"]
    rows = [_row(comparison, m) for m in families(comparison) if _has_all(comparison, m)]
    return table(head, rows)


def _has_all(comparison: Comparison, method: str) -> bool:
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
