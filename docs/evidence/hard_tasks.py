"""Tasks that are hard on rules for step sizes: Adam with TrustedMoMo, and bare Adam.

    python -m docs.evidence.hard_tasks                      # the missing trials; ten minutes
    python -m docs.evidence.hard_tasks --again TrustedMoMo  # the rows of the rule again

trains, on the tasks of further/, bare Adam at 7 learning rates and Adam with TrustedMoMo at a cap
of 100. The results are in docs/evidence/results/hard_tasks.csv; the tables in docs/evidence.md are
written by report.py.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from docs.evidence.further import situations
from docs.evidence.further.judged import JUDGED
from docs.evidence.further.new import NEW
from docs.evidence.further.tasks import CHOSEN_ON
from docs.evidence.methods import BARE, wrapped
from docs.evidence.plan import RESULTS, forget
from momo_wrap import TrustedMoMo, sweep

HARD_TASKS = RESULTS / "hard_tasks.csv"
SITUATIONS = {**CHOSEN_ON, **JUDGED, **NEW}
# A bound that suits the loss where 0 does not, as the loss goes below. With advantages of mean 0
# and variance 1, as in steering, it is -cov(advantage, z²/2), with z standard normal: not below
# -0.71 in expectation. In stopping, there are two choices; as -p log p of neither is above 1/e, it
# is not below -0.74 for advantages of about 1. In the mixture density, one branch alone, of
# standard deviation exp(-2.8), would give -1.38; as they are mixed, the true density gives -0.46.
BOUNDS = {"bandit": -10.0, "actor-critic": -1.0, "steering, policy gradient": -2.0}
BOUNDS |= {"stopping, policy gradient": -2.0, "mixture density": -1.5}
BASE, WRAPPED, CAP = "Adam", "Adam + TrustedMoMo", 100.0
LEARNING_RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
NEW_SEEDS = [3, 4, 5]  # nothing was chosen on these


def run(path: Path = HARD_TASKS, processes: int | None = None, again: str = "") -> None:
    """Run the missing trials.

    Args:
        path: The file of results.
        processes: Their number; None: as many as there are cores.
        again: The rows of methods with this in their name are removed first.
    """
    if again:
        forget(path, again)
    tasks = {t: partial(situations.train, make_situation=make) for t, make in SITUATIONS.items()}
    for bound in sorted({BOUNDS.get(task, 0.0) for task in tasks}):
        bounded = {task: train for task, train in tasks.items() if BOUNDS.get(task, 0.0) == bound}
        rule = partial(TrustedMoMo, lower_bound=bound)
        methods = {WRAPPED: partial(wrapped, base=BARE[BASE], rule=rule)}
        sweep.run(bounded, methods, [CAP], NEW_SEEDS, path, processes=processes)
    sweep.run(tasks, {BASE: BARE[BASE]}, LEARNING_RATES, NEW_SEEDS, path, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    parser.add_argument("--again", default="", help="run methods with this in their name again")
    arguments = parser.parse_args()
    run(processes=arguments.processes, again=arguments.again)


if __name__ == "__main__":
    main()
