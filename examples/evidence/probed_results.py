"""How rules did on the ten tasks, without and with probes and by slopes, at the same cap."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from comparing import at_one_setting, is_near, shortfall, tally
from hard_tasks import CAP, PROBED, PROBED_BASES, by_slopes, with_rule
from measures import Comparison, gain, judged_by
from plan import SEEDS
from sections import difference, table
from tasks import SCORED, TASKS

from momo_wrap import sweep
from momo_wrap.sweep.comparing import medians

# TrustedMoMo in two forms, and SlopeTrust.
_FORMS = ("without probes", "with probes", "SlopeTrust")


def section(comparison: Comparison, path: Path = PROBED) -> str:
    """Return, by base, on how many tasks it is near, by each rule, and the gaps.

    Args:
        comparison: The results of the constant schedule, with tuned bare bases and no probes.
        path: The results of hard_tasks.py on the ten tasks.
    """
    results = sweep.load(path) if path.exists() else None
    needed = 2 * len(PROBED_BASES) * len(TASKS) * len(SEEDS)
    if results is None or len(results) != needed or set(comparison.tasks) != set(TASKS):
        return "There are no complete results yet."
    head = ["near tuned bare"]
    for form in _FORMS:
        head += [form, "shortfall"]
    rows, each = [], []
    for base in PROBED_BASES:
        fixed = at_one_setting(comparison, with_rule(base, probes=False), CAP)
        never = len(fixed.never)
        methods = (with_rule(base, probes=True), by_slopes(base))
        tasks = list(fixed.same_base)
        found = [fixed.same_base, *(gains(comparison, base, m, results, tasks) for m in methods)]
        cells = []
        for of, form in zip(found, _FORMS, strict=True):
            near = sum(is_near(*item) for item in of.items())
            cells += [tally(near, len(of), never), f"{shortfall(of):.1f}"]
            each.append([f"{base}, {form}", *(difference(t, of.get(t)) for t in TASKS)])
        rows.append([base, *cells])
    every = f"The gap to the tuned bare base on each task, at a cap of {CAP:g}:"
    return f"{table(head, rows)}\n\n{every}\n\n{table(['', *TASKS], each)}"


def gains(
    comparison: Comparison, base: str, method: str, results: pd.DataFrame, tasks: list[str]
) -> dict[str, float]:
    """Return how much better a base with a rule is than bare at its best, by task.

    Args:
        comparison: The results of the constant schedule.
        base: The base.
        method: What it is called with the rule.
        results: Those of the method.
        tasks: The tasks.
    """
    found = {}
    for task in tasks:
        values = medians(results, task, judged_by(task), task in SCORED)
        found[task] = gain(task, values.loc[CAP, method], comparison.cells[base, task].best)
    return found
