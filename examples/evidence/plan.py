"""What is run: the grid of learning rates, seeds and schedules, and where the results are kept."""

from __future__ import annotations

from pathlib import Path

from problems import Schedule, constant, warmup_and_linear_decay

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "evidence"
LEARNING_RATES = [float(f"{10 ** (-4 + 2 * i / 3):.3g}") for i in range(10)]
SEEDS = [0, 1, 2]
SCHEDULES: dict[str, Schedule] = {"constant": constant, "decay": warmup_and_linear_decay}


def path_of(schedule: str, folder: Path = RESULTS) -> Path:
    """Return the file of results of a schedule."""
    return folder / f"{schedule}.csv"
