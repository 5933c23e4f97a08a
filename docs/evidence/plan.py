"""The setup: the grid of learning rates, seeds and schedules, and the files of the results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from docs.evidence.problems import Schedule, constant, warmup_and_linear_decay
from momo_wrap import sweep

RESULTS = Path(__file__).parent / "results"
LEARNING_RATES = [float(f"{10 ** (-4 + 2 * i / 3):.3g}") for i in range(10)]
SEEDS = [0, 1, 2]
SCHEDULES: dict[str, Schedule] = {"constant": constant, "decay": warmup_and_linear_decay}


def forget(path: Path, text: str) -> int:
    """Remove the rows of all methods whose name has a text in it, so that they are run again.

    Args:
        path: A file of results; if there is none, nothing is done.
        text: The text, such as the name of a rule.

    Returns:
        How many rows were removed.
    """
    if not path.exists():
        return 0
    methods = {name for name in sweep.load(path)["optimizer"] if text in name}
    return sweep.forget(path, optimizer=methods)


def run_from_command_line(run: Callable[[int | None], None], doc: str | None) -> None:
    """Run the missing trials, in as many processes as the command line says."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    run(parser.parse_args().processes)


def path_of(schedule: str, folder: Path = RESULTS) -> Path:
    """Return the file of results of a schedule."""
    return folder / f"{schedule}.csv"
