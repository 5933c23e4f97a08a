"""A sweep in processes of its own, which tests kill: see `start`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from momo_wrap import sweep
from momo_wrap.sweep.results_file import Run
from tests.sweep.training import LOG, OPTIMIZERS, PAUSE, logged

RATES = [0.1 * number for number in range(1, 16)]
SEEDS = [0, 1]
RUNS = len(OPTIMIZERS) * len(RATES) * len(SEEDS)


def run(path: Path | str, storage: Path | str | None = None, processes: int = 0) -> pd.DataFrame:
    """Run the missing trials."""
    how: dict[str, Any] = {"storage": storage, "processes": processes, "progress": False}
    return sweep.run(logged, OPTIMIZERS, RATES, SEEDS, path, **how)


def start(
    path: Path,
    storage: Path | str = "",
    processes: int = 2,
    pause: float = 0.03,
    together: int = 1,
) -> subprocess.Popen[bytes]:
    """Run the missing trials in a separate process, or in its worker processes.

    It begins when so many have been started: importing torch may take longer than the sweep.
    """
    how = [str(path), str(storage), str(processes), str(together)]
    command = [sys.executable, "-m", "tests.sweep.shared", *how]
    environment = os.environ | {PAUSE: str(pause)}
    folder = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=folder, env=environment)


def begun() -> list[str]:
    """Return the runs that have begun, each with the number of its process."""
    log = Path(os.environ[LOG])
    return log.read_text().splitlines() if log.exists() else []


def losses(results: pd.DataFrame) -> dict[Run, float]:
    """Return the loss of each run, of which there must be all, once."""
    runs = [Run(*values) for values in zip(*(results[name] for name in Run._fields), strict=True)]
    assert len(set(runs)) == len(runs) == RUNS
    assert set(results["status"]) == {"ok"}
    return dict(zip(runs, results["loss"], strict=True))


def wait_for_others(count: int) -> None:
    """Wait until so many processes have come to here."""
    with Path(f"{os.environ[LOG]}.ready").open("a") as ready:
        ready.write("x")
    while Path(f"{os.environ[LOG]}.ready").stat().st_size < count:
        time.sleep(0.01)


if __name__ == "__main__":
    wait_for_others(int(sys.argv[4]))
    run(sys.argv[1], sys.argv[2] or None, int(sys.argv[3]))
