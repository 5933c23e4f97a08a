"""Run the comparison of optimizers, or go on with it; then draw the figures and write the tables.

    pip install -e ".[evidence]"
    python -m docs.evidence.sweeps                     # the missing trials, then the report
    python -m docs.evidence.sweeps --again TrustedMoMo # these rows again, after a change
    python -m docs.evidence.sweeps --schedule constant --task "digits, conv net"
    python -m docs.evidence.sweeps --data DIR          # also what torchvision has put there

trains every optimizer of `methods.py` on every task of `tasks.py`, at 10 learning rates over 6
decades, with 3 seeds and two schedules. From nothing that takes some three hours on two cores; the
raw results in docs/evidence/results are taken up where they are, and each run that ends is kept.
Afterwards `candidates.py`, `profiles.py`, `hard_tasks.py` and `long_runs.py` take up what is
missing of theirs, unless some tasks, methods or another `--folder` were asked for; then the report
of `report.py` is written. For another folder run that by itself.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path

from docs.evidence import candidates, hard_tasks, long_runs, profiles
from docs.evidence.methods import METHODS
from docs.evidence.plan import LEARNING_RATES, RESULTS, SCHEDULES, SEEDS, forget, path_of
from docs.evidence.problems import train
from docs.evidence.report import PAGE, load, write
from docs.evidence.tasks import TASKS
from docs.evidence.torchvision_images import found
from momo_wrap import sweep


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--task", nargs="+", help="some tasks alone")
    parser.add_argument("--data", type=Path, help="a folder with datasets of torchvision")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    parser.add_argument("--again", default="", help="run methods with this in their name again")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    tasks = {**TASKS, **(found(arguments.data) if arguments.data else {})}
    if unknown := set(arguments.task or []) - tasks.keys():
        raise SystemExit(f"There are no tasks {sorted(unknown)}, only {list(tasks)}.")
    is_whole = arguments.folder == RESULTS and not arguments.task
    is_whole &= arguments.method == list(METHODS)
    if arguments.again:
        files = [path_of(name, arguments.folder) for name in arguments.schedule]
        if is_whole:
            files += [candidates.CANDIDATES, profiles.PROFILES]
            files += [hard_tasks.HARD_TASKS, long_runs.LONG_RUNS]
        print({path.name: forget(path, arguments.again) for path in files}, "rows removed")
    for name, task in product(arguments.schedule, arguments.task or tasks):
        sweep.run(
            {task: partial(train, make_problem=tasks[task], schedule=SCHEDULES[name])},
            {method: METHODS[method] for method in arguments.method},
            LEARNING_RATES,
            SEEDS,
            path_of(name, arguments.folder),
            settings={"schedule": name},
            processes=arguments.processes,
        )
    if is_whole:
        candidates.run(arguments.processes)
        profiles.run(load()[profiles.SCHEDULE], processes=arguments.processes)
        hard_tasks.run(processes=arguments.processes)
        long_runs.run(processes=arguments.processes)
    if arguments.folder == RESULTS:
        write(RESULTS, PAGE, RESULTS)


if __name__ == "__main__":
    main()
