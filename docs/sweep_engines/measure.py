"""Measure what each engine gives on the sweep of task.py.

    pip install optuna "ray[tune]" "dask[distributed]" joblib psutil
    python -m docs.sweep_engines.measure

runs each script three times: undisturbed; with SIGKILL to the worker that has begun the last run;
with SIGKILL to all its processes, and then once more. Prints a row of the table in docs/sweep.md
for each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STORAGES = {
    "with_optuna_grid.py": "sweep.journal",
    "with_optuna_grid.py on SQLite": "sqlite:///sweep.db",
    "with_ray_tune.py": "results",
    "with_joblib.py": "cache",
    "with_dask.py": "cache",
    "with_momo_wrap.py": "sweep.csv",
}
KILL_AFTER = 40  # runs
PATIENCE = 900.0  # seconds


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    environment = {"LOG": str(folder / "log"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    module = f"docs.sweep_engines.{Path(name.split()[0]).stem}"
    command = [sys.executable, "-m", module, STORAGES[name]]
    pipes = {"stdout": subprocess.PIPE, "stderr": (folder / "errors").open("a")}
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, text=True, **pipes)


def begun(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def wait_until_begun(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(begun(folder)) < count and process.poll() is None:
        time.sleep(0.02)


def outcome(process: subprocess.Popen[str], folder: Path) -> str:
    """Return the output of the script, and how many runs were started twice."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        kill_all(process)
        return f"hangs ({len(begun(folder))} runs begun)"
    counts = Counter(line.split(" ", 1)[1] for line in begun(folder))
    again = sum(counts.values()) - len(counts)
    said = output.strip().splitlines()[-1:] or [f"rc {process.returncode}"]
    return f"{said[0]}, {again} runs begun again"


def kill_all(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for each in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def undisturbed(name: str, folder: Path) -> str:
    begin = time.monotonic()
    told = outcome(start(name, folder), folder)
    return f"{time.monotonic() - begin:.0f} s, {told}"


def worker_killed(name: str, folder: Path) -> str:
    process = start(name, folder)
    wait_until_begun(folder, KILL_AFTER, process)
    os.kill(int(begun(folder)[-1].split()[0]), signal.SIGKILL)
    told = outcome(process, folder)
    return told if process.returncode == 0 else f"rc {process.returncode}, {told}"


def all_killed(name: str, folder: Path) -> str:
    process = start(name, folder)
    wait_until_begun(folder, KILL_AFTER, process)
    kill_all(process)
    return outcome(start(name, folder), folder)


def main() -> None:
    for name in sys.argv[1:] or STORAGES:
        script = ROOT / "docs" / "sweep_engines" / name.split()[0]
        print(f"{name}: {len(script.read_text().splitlines())} lines", flush=True)
        for measure in (undisturbed, worker_killed, all_killed):
            with tempfile.TemporaryDirectory() as folder:
                print(f"    {measure.__name__}: {measure(name, Path(folder))}", flush=True)
                errors = Path(folder, "errors").read_text().strip().splitlines()
                print("".join(f"        {line}\n" for line in errors[-2:]), end="", flush=True)


if __name__ == "__main__":
    main()
