"""Each rule at 1, 10 and 100 times the best learning rate, on three tasks.

    python -m docs.evidence.which_rule      # the missing trials; ten minutes on one core

trains Adam and SGD-M with each rule of the library, and with those that were tried, in rules/. The
best learning rate is that of the bare base on the task, in docs/evidence/results/constant.csv. The
results in docs/evidence/results/which_rule.csv are taken up where they are, and the tables in
docs/which_rule.md are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from docs.evidence.measures import judged_by
from docs.evidence.methods import BARE, wrapped
from docs.evidence.plan import RESULTS, path_of, run_from_command_line
from docs.evidence.problems import train
from docs.evidence.rules.limited_growth import LimitedGrowth
from docs.evidence.rules.trust_region import TrustRegion
from docs.evidence.rules.warm_target import WarmTarget
from docs.evidence.sections import table
from docs.evidence.tasks import DESIGN, SCORED
from docs.evidence.twins import train_twins
from momo_wrap import MoMo, MoMoStar, StepRule, TrustedMoMo, sweep
from momo_wrap.research import (
    NGN,
    DecSPS,
    ModelNGN,
    MovingTarget,
    PerGroup,
    SPSMax,
    SPSSafe,
    TwinPolyak,
)
from momo_wrap.sweep import OptimizerFactory
from momo_wrap.sweep.comparing import medians

WHICH_RULE = RESULTS / "which_rule.csv"
CONSTANT = path_of("constant")
PAGE = Path(__file__).parents[1] / "which_rule.md"
TASKS = {
    name: DESIGN[name] for name in ("digits, perceptron", "digits, diffusion", "matrix completion")
}
TIMES = (1.0, 10.0, 100.0)
SEEDS = [0, 1]
BASES = {name: BARE[name] for name in ("Adam", "SGD-M")}
RULES: dict[str, Callable[[], StepRule]] = {
    rule.__name__: rule
    for rule in (
        MoMo,
        MoMoStar,
        TrustedMoMo,
        SPSMax,
        SPSSafe,
        DecSPS,
        NGN,
        ModelNGN,
        MovingTarget,
        WarmTarget,
        LimitedGrowth,
        TrustRegion,
        PerGroup,
        TwinPolyak,
    )
}


def methods(base: str) -> dict[str, OptimizerFactory]:
    """Return a base, bare and with each rule, by names such as "Adam + MoMo"."""
    make = BARE[base]
    ruled = {f"{base} + {name}": partial(wrapped, base=make, rule=r) for name, r in RULES.items()}
    return {base: make, **ruled}


def best_rate(base: str, task: str, path: Path = CONSTANT) -> float:
    """Return the best learning rate of a bare base on a task, in a file of results."""
    known = sweep.load(path)
    by_rate = medians(known[known["optimizer"] == base], task, judged_by(task), task in SCORED)
    column = by_rate[base]
    return float(column.idxmax() if task in SCORED else column.idxmin())


def rates(base: str, task: str) -> list[float]:
    """Return the learning rates of a base on a task, those of `TIMES`."""
    return [float(f"{times * best_rate(base, task):.6g}") for times in TIMES]


def run(processes: int | None = None) -> None:
    """Run the missing trials in so many processes, and write the tables into the page."""
    for base in BASES:
        for name, make in TASKS.items():
            ruled, twins = methods(base), f"{base} + {TwinPolyak.__name__}"
            for its_train, its in ((train_twins, {twins: ruled.pop(twins)}), (train, ruled)):
                task = {name: partial(its_train, make_problem=make)}
                sweep.run(task, its, rates(base, name), SEEDS, WHICH_RULE, processes=processes)
    write(sections())


def write(tables: Mapping[str, str]) -> None:
    """Write tables into the page, by the names of their sections."""
    from docs.evidence.report import replace_sections  # which imports a page of its own

    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_sections(page, tables), encoding="utf-8")


def sections(path: Path = WHICH_RULE) -> dict[str, str]:
    """Return the tables of the page, one for each base.

    Args:
        path: The file of results.
    """
    results = sweep.load(path)
    return {f"rules over {base}": _table(results, base) for base in BASES}


def _table(results: pd.DataFrame, base: str) -> str:
    """Return the mean test loss over seeds of each rule."""
    grid = {task: rates(base, task) for task in TASKS}
    head = [
        "rule",
        *(f"{task}, lr {rate:g}" for task, its in grid.items() for rate in its),
    ]
    rows = []
    for name, method in zip(("bare", *(f"`{rule}`" for rule in RULES)), methods(base), strict=True):
        cells = [cell(results, task, method, rate) for task, its in grid.items() for rate in its]
        rows.append([name, *cells])
    return table(head, rows)


def cell(results: pd.DataFrame, task: str, method: str, rate: float) -> str:
    """Return the mean test loss of the runs of a cell, or that one has failed."""
    same = (results["task"] == task) & (results["optimizer"] == method) & (results["lr"] == rate)
    runs = results[same & results["seed"].isin(SEEDS)]
    if len(runs) < len(SEEDS):
        return "?"
    return f"{runs['loss'].mean():.3g}" if (runs["status"] == "ok").all() else "fails"


if __name__ == "__main__":
    run_from_command_line(run, __doc__)
