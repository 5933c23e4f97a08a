"""Tasks that are hard on rules for step sizes: TrustedMoMo, SlopeTrust, and bare Adam.

    python examples/evidence/hard_tasks.py                      # what is missing; a quarter hour
    python examples/evidence/hard_tasks.py --again TrustedMoMo  # the rows of this rule anew

trains, on the tasks of further/, bare Adam at 7 learning rates and Adam with rules at a cap of 100,
TrustedMoMo without and with probes and SlopeTrust, into docs/results/evidence/hard_tasks.csv; and
four bases with probes, or with SlopeTrust, on the ten tasks of the other comparisons, at the same
cap, into probed.csv beside it. The tables in docs/evidence.md are written by report.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import problems
from further import situations
from further.judged import JUDGED
from further.tasks import CHOSEN_ON
from methods import BARE, METHODS, wrapped
from methods import with_rule as with_rules
from plan import RESULTS, SEEDS, forget
from tasks import TASKS

from momo_wrap import StepRule, TrustedMoMo, sweep
from momo_wrap.research import SlopeTrust

HARD_TASKS = RESULTS / "hard_tasks.csv"
PROBED = RESULTS / "probed.csv"
SITUATIONS = {**CHOSEN_ON, **JUDGED}
# A bound that suits the loss where 0 does not, as the loss goes below. With advantages of mean 0
# and variance 1, as in steering, it is -cov(advantage, z²/2), with z standard normal: not below
# -0.71 in expectation.
BOUNDS = {"bandit": -10.0, "actor-critic": -1.0, "steering, policy gradient": -2.0}
BASE = "Adam"
LEARNING_RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
CAP = 100.0
NEW_SEEDS = [3, 4, 5]  # nothing was chosen on these
PROBED_BASES = ("SGD-M", "AdamW", "Muon", "Lion")  # on the ten tasks


def with_rule(base: str, *, probes: bool) -> str:
    """Return what a base with the rule is called."""
    return f"{base} + TrustedMoMo" + ", probed" * probes


def by_slopes(base: str) -> str:
    """Return what a base with SlopeTrust is called."""
    return f"{base} + SlopeTrust"


def run(
    hard: Path = HARD_TASKS, probed: Path = PROBED, processes: int | None = None, again: str = ""
) -> None:
    """Run what is missing.

    Args:
        hard: The file of results on the hard tasks.
        probed: That on the ten tasks.
        processes: Their number; None: as many as there are cores.
        again: The rows of methods with this in their name are removed first.
    """
    if again:
        forget(hard, again)
        forget(probed, again)
    rules: dict[str, tuple[bool, Callable[..., StepRule]]] = {
        with_rule(BASE, probes=False): (False, TrustedMoMo),
        with_rule(BASE, probes=True): (True, TrustedMoMo),
        by_slopes(BASE): (False, SlopeTrust),
    }
    for name, (probes, make_rule) in rules.items():
        for bound in sorted({BOUNDS.get(task, 0.0) for task in SITUATIONS}):
            tasks = {
                task: partial(situations.train, make_situation=make, probes=probes)
                for task, make in SITUATIONS.items()
                if BOUNDS.get(task, 0.0) == bound
            }
            rule = partial(make_rule, lower_bound=bound)
            methods = {name: partial(wrapped, base=BARE[BASE], rule=rule)}
            sweep.run(tasks, methods, [CAP], NEW_SEEDS, hard, processes=processes)
    bare = {t: partial(situations.train, make_situation=make) for t, make in SITUATIONS.items()}
    sweep.run(bare, {BASE: BARE[BASE]}, LEARNING_RATES, NEW_SEEDS, hard, processes=processes)
    ten = {t: partial(problems.train, make_problem=make, probes=True) for t, make in TASKS.items()}
    probed_methods = {
        with_rule(base, probes=True): METHODS[with_rule(base, probes=False)]
        for base in PROBED_BASES
    }
    sweep.run(ten, probed_methods, [CAP], SEEDS, probed, processes=processes)
    # It is given probes, too, and evaluates none.
    slopes = with_rules(" + SlopeTrust", SlopeTrust)
    slope_methods = {by_slopes(base): slopes[by_slopes(base)] for base in PROBED_BASES}
    sweep.run(ten, slope_methods, [CAP], SEEDS, probed, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    parser.add_argument("--again", default="", help="run methods with this in their name anew")
    arguments = parser.parse_args()
    run(processes=arguments.processes, again=arguments.again)


if __name__ == "__main__":
    main()
