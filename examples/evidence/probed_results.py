"""How the rule did with probes on the ten tasks, against the same without them, at the same cap."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from comparing import at_one_setting, is_near, shortfall, tally
from hard_tasks import CAP, PROBED, PROBED_BASES, with_rule
from measures import Comparison, gain, judged_by
from plan import SEEDS
from sections import difference, table
from tasks import SCORED, TASKS

from momo_wrap import sweep
from momo_wrap.sweep.comparing import medians


def section(comparison: Comparison, path: Path = PROBED) -> str:
    """Return, by base, on how many tasks it is near, without and with probes, and the gaps.

    Args:
        comparison: The results of the constant schedule, with tuned bare bases and no probes.
        path: The results of hard_tasks.py with probes.
    """
    results = sweep.load(path) if path.exists() else None
    needed = len(PROBED_BASES) * len(TASKS) * len(SEEDS)
    if results is None or len(results) != needed or set(comparison.tasks) != set(TASKS):
        return "There are no complete results yet."
    head = ["near tuned bare", *("without probes", "shortfall", "with probes", "shortfall")]
    rows, each = [], []
    for base in PROBED_BASES:
        fixed = at_one_setting(comparison, with_rule(base, probes=False), CAP)
        never = len(fixed.never)
        found = [fixed.same_base, gains(comparison, base, results, list(fixed.same_base))]
        cells = []
        for of, form in zip(found, ("without", "with"), strict=True):
            near = sum(is_near(*item) for item in of.items())
            cells += [tally(near, len(of), never), f"{shortfall(of):.1f}"]
            each.append([f"{base}, {form} probes", *(difference(t, of.get(t)) for t in TASKS)])
        rows.append([base, *cells])
    every = f"The gap to the tuned bare base on each task, at a cap of {CAP:g}:"
    return f"{table(head, rows)}\n\n{every}\n\n{table(['', *TASKS], each)}"


def gains(
    comparison: Comparison, base: str, results: pd.DataFrame, tasks: list[str]
) -> dict[str, float]:
    """Return how much better a base with the rule and probes is than bare at its best, by task.

    Args:
        comparison: The results of the constant schedule.
        base: The base.
        results: Those with probes.
        tasks: The tasks.
    """
    method, found = with_rule(base, probes=True), {}
    for task in tasks:
        values = medians(results, task, judged_by(task), task in SCORED)
        found[task] = gain(task, values.loc[CAP, method], comparison.cells[base, task].best)
    return found
