"""Run the comparison of optimizers, or go on with it; then draw the figures and write the tables.

    python examples/evidence/sweeps.py                     # what is missing, then the report
    python examples/evidence/sweeps.py --schedule constant --task "digits, conv net"

trains every optimizer of `methods.py` on every task of `tasks.py`, at 10 learning rates over 6
decades, with 3 seeds and two schedules. From nothing that takes some two hours on two cores; the
raw results in docs/results/evidence are taken up where they are, and each run that ends is kept.
The report is that of `report.py`; for another `--folder` run that by itself.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from methods import METHODS
from plan import LEARNING_RATES, RESULTS, SCHEDULES, SEEDS, path_of
from problems import train
from report import PAGE, write
from tasks import TASKS

from momo_wrap import sweep


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for name in arguments.schedule:
        schedule = SCHEDULES[name]
        for task in arguments.task:
            sweep.run(
                {task: partial(train, make_problem=TASKS[task], schedule=schedule)},
                {method: METHODS[method] for method in arguments.method},
                LEARNING_RATES,
                SEEDS,
                path_of(name, arguments.folder),
                settings={"schedule": name},
                processes=arguments.processes,
            )
    if arguments.folder == RESULTS:
        write(RESULTS, PAGE, RESULTS)


if __name__ == "__main__":
    main()
