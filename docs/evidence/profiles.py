"""How fast each method reaches a target, at one setting for all tasks: runs judged 20 times each.

    python -m docs.evidence.profiles                      # the missing trials; 20 minutes
    python -m docs.evidence.profiles --again TrustedMoMo  # the rows of these methods again

trains wrapped optimizers and those that tune themselves at the settings of `comparing.ONE_SETTING`,
and bare ones at the learning rate that is best for them on the design tasks, with a constant
learning rate. That is chosen from docs/evidence/results/constant.csv, which must be there. The
table and figure in docs/evidence.md are written by report.py.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from docs.evidence.calibrated import calibrated_lr
from docs.evidence.comparing import ONE_SETTING
from docs.evidence.measures import Comparison
from docs.evidence.methods import BARE, METHODS
from docs.evidence.plan import RESULTS, SEEDS, forget, path_of
from docs.evidence.problems import train
from docs.evidence.tasks import TASKS
from momo_wrap import sweep

SCHEDULE = "constant"
PROFILES = RESULTS / "profiles.csv"
EVALUATIONS = 20


def settings(comparison: Comparison) -> dict[str, float]:
    """Return the one learning rate that each method is run at.

    Args:
        comparison: The results with a constant learning rate.
    """
    calibrated = {base: calibrated_lr(comparison, base) for base in BARE}
    return {method: {**ONE_SETTING, **calibrated}[method] for method in METHODS}


def run(
    comparison: Comparison, path: Path = PROFILES, processes: int | None = None, again: str = ""
) -> None:
    """Run the missing trials.

    Args:
        comparison: The results with a constant learning rate.
        path: The file of results.
        processes: Their number; None: as many as there are cores.
        again: The rows of methods with this in their name are removed first.
    """
    if again:
        forget(path, again)
    tasks = {
        name: partial(train, make_problem=make, evaluations=EVALUATIONS)
        for name, make in TASKS.items()
    }
    chosen = settings(comparison)
    for lr in sorted(set(chosen.values())):
        methods = {name: METHODS[name] for name in METHODS if chosen[name] == lr}
        kept = {"schedule": SCHEDULE}
        sweep.run(tasks, methods, [lr], SEEDS, path, settings=kept, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    parser.add_argument("--again", default="", help="run methods with this in their name again")
    arguments = parser.parse_args()
    comparison = Comparison(sweep.load(path_of(SCHEDULE)))
    run(comparison, PROFILES, arguments.processes, arguments.again)


if __name__ == "__main__":
    main()
