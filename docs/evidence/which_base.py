"""Each method that is a rule over a base of its own, on the tasks of which_rule.

    python -m docs.evidence.which_base      # the missing trials; ten minutes on one core

trains at 1, 10 and 100 times the best learning rate. That is the bare base's on the task, in
docs/evidence/results/constant.csv; for `HeavyBall` it is that of SGD-M or Adam, for `MuonMax` it is
looked for on the same grid. The results in docs/evidence/results/which_base.csv are taken up where
they are, and the table in docs/which_rule.md is written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from schedulefree import AdamWScheduleFree, SGDScheduleFree

from docs.evidence import which_rule
from docs.evidence.methods import muon, muon_and_adamw, wrapped
from docs.evidence.plan import LEARNING_RATES, RESULTS, run_from_command_line
from docs.evidence.problems import train
from docs.evidence.sections import table
from docs.evidence.which_rule import CONSTANT, SEEDS, TASKS, TIMES, best_rate
from momo_wrap import MoMo, StepRule, sweep
from momo_wrap.research import NGN, HeavyBall, MuonMax, SPSMax
from momo_wrap.sweep import OptimizerFactory

WHICH_BASE = RESULTS / "which_base.csv"


class Base(NamedTuple):
    """A base, its wrapped form, the base whose learning rates it has, and rules by method."""

    make: Callable[..., Any]
    wrapped: Callable[..., Any]
    like: str
    rules: dict[str, Callable[[], StepRule]]


heavy_adam = partial(HeavyBall, beta2=0.999)
BASES: dict[str, Base] = {
    "`HeavyBall`": Base(
        HeavyBall, HeavyBall, "SGD-M", {"IAMS": MoMo, "NGN-M": NGN, "MomSPS_max": SPSMax}
    ),
    "`HeavyBall`, `beta2=0.999`": Base(
        heavy_adam, heavy_adam, "Adam", {"IAMS-Adam": MoMo, "NGN-MDv1": NGN}
    ),
    "`SGDScheduleFree`": Base(
        SGDScheduleFree, SGDScheduleFree, "schedule-free SGD", {"schedule-free Polyak": MoMo}
    ),
    "`AdamWScheduleFree`": Base(
        AdamWScheduleFree,
        AdamWScheduleFree,
        "schedule-free AdamW",
        {"schedule-free Polyak, Adam": MoMo},
    ),
    "`Muon` and `AdamW`": Base(muon, muon_and_adamw, "Muon", {"near MuonAdam-Momo": MoMo}),
    "`MuonMax`": Base(MuonMax, MuonMax, "MuonMax", {"MuonMax-Momo": MoMo}),
}


def methods(base: Base) -> dict[str, OptimizerFactory]:
    """Return the wrapped forms of a base, by the names of the methods."""
    return {
        name: partial(wrapped, base=base.wrapped, rule=rule) for name, rule in base.rules.items()
    }


def rates(base: Base, task: str) -> list[float]:
    """Return the learning rates of a base on a task, multiples of the best of the bare one."""
    best = best_rate(base.like, task, WHICH_BASE if base.like == "MuonMax" else CONSTANT)
    return [float(f"{times * best:.6g}") for times in TIMES]


def run(processes: int | None = None) -> None:
    """Run the missing trials in so many processes, and write the table into the page."""
    for task, make in TASKS.items():
        of_task = {task: partial(train, make_problem=make)}
        bare: dict[str, OptimizerFactory] = {"MuonMax": MuonMax}
        sweep.run(of_task, bare, LEARNING_RATES, SEEDS, WHICH_BASE, processes=processes)
        for name, base in BASES.items():
            its = {name: base.make, **methods(base)}
            sweep.run(of_task, its, rates(base, task), SEEDS, WHICH_BASE, processes=processes)
    which_rule.write(sections())


def sections(path: Path = WHICH_BASE) -> dict[str, str]:
    """Return the table of the page.

    Args:
        path: The file of results.
    """
    results = sweep.load(path)
    multiples = [f"{task}, {times:g} times" for task in TASKS for times in TIMES]
    rows = []
    for name, base in BASES.items():
        grid = [(task, rate) for task in TASKS for rate in rates(base, task)]
        for method, shown in ((name, f"{name}, bare"), *((rule, rule) for rule in base.rules)):
            cells = [which_rule.cell(results, task, method, rate) for task, rate in grid]
            rows.append([shown, *cells])
    return {"rules over bases of their own": table(["method", *multiples], rows)}


if __name__ == "__main__":
    run_from_command_line(run, __doc__)
