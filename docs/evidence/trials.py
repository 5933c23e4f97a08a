"""How the candidates of candidates.py did at high learning rates, as a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from docs.evidence.candidates import BASES, CANDIDATES, LEARNING_RATES, RULES
from docs.evidence.comparing import is_near, shortfall, trained
from docs.evidence.measures import Comparison, gain, judged_by
from docs.evidence.plan import SEEDS
from docs.evidence.sections import table
from docs.evidence.tasks import DESIGN, SCORED
from momo_wrap import sweep
from momo_wrap.sweep.comparing import medians


def trials(comparison: Comparison, path: Path = CANDIDATES) -> str:
    """Return the table of all candidates.

    Args:
        comparison: The results of the constant schedule, with the tuned bare optimizers.
        path: The results of the candidates.
    """
    results = sweep.load(path) if path.exists() else None
    needed = len(DESIGN) * len(BASES) * len(RULES) * len(LEARNING_RATES) * len(SEEDS)
    is_complete = results is not None and len(results) == needed
    if results is None or not is_complete or not set(DESIGN) <= set(comparison.tasks):
        return "There are no complete results yet."
    able = {base: trained(comparison, base, DESIGN) for base in BASES}
    gains = {task: _gains(comparison, task, results) for task in DESIGN}
    head = ["rule", *(f"{base}, lr {lr:g}" for base in BASES for lr in LEARNING_RATES)]
    rows = [
        [
            f"`{rule}`",
            *(
                _cell({t: gains[t] for t in able[base]}, f"{base} + {rule}", lr)
                for base in BASES
                for lr in LEARNING_RATES
            ),
        ]
        for rule in RULES
    ]
    return table(head, rows)


def _gains(comparison: Comparison, task: str, results: pd.DataFrame) -> pd.DataFrame:
    """Return the gain over the tuned bare base, by learning rate and method."""
    values = medians(results, task, judged_by(task), task in SCORED)
    found = {
        method: [
            gain(task, value, comparison.cells[method.split(" + ")[0], task].best)
            for value in values[method]
        ]
        for method in values.columns
    }
    return pd.DataFrame(found, index=values.index)


def _cell(gains: dict[str, pd.DataFrame], method: str, lr: float) -> str:
    """Return the mean shortfall, and on how many tasks there is hardly any."""
    found = {task: float(frame.loc[lr, method]) for task, frame in gains.items()}
    count = sum(is_near(task, f) for task, f in found.items())
    return f"{shortfall(found):.1f} ({count})"
