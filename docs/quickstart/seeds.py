"""The quickstart over several seeds: how far its result depends on luck.

    python -m docs.quickstart.seeds

runs examples/quickstart.py for the seeds whose result is not in docs/quickstart/results yet, about
three minutes each, and prints the table of tolerated learning rates that is in the README.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

from examples.quickstart import METHODS, Sweep, decades

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SEEDS = range(12)
COLLAPSED = 0.5  # accuracy below which a network has not just trained a little worse


def run_quickstart(seed: int, result: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    outputs = ["--csv", str(result), "--output", str(result.with_suffix(".png"))]
    subprocess.run([sys.executable, str(script), "--seed", str(seed), *outputs], check=True)


def load(result: Path) -> Sweep:
    with result.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rates = sorted({float(row["learning_rate"]) for row in rows})
    accuracies = {
        method: [float(row["test_accuracy"]) for row in rows if row["method"] == method]
        for method in METHODS
    }
    return Sweep(rates, accuracies)


def collapses_from(sweep: Sweep, method: str) -> float | None:
    """Return the learning rate from which on training is ruined, if there is one in the sweep."""
    ruined: float | None = None
    pairs = list(zip(sweep.learning_rates, sweep.accuracies[method], strict=True))
    for lr, accuracy in reversed(pairs):
        if accuracy >= COLLAPSED:
            break
        ruined = lr
    return ruined


def table(results: list[Path]) -> str:
    """Return the widths of the tolerated ranges over all seeds, as Markdown."""
    sweeps = [load(result) for result in results]
    lines = ["| | decades of lr: median (range) | collapses at high lr |", "|---|---|---|"]
    for method in METHODS:
        widths = [decades(sweep.tolerated(method)) for sweep in sweeps]
        ruined = [lr for sweep in sweeps if (lr := collapses_from(sweep, method)) is not None]
        least = f"{min(widths):.1f}" if min(widths) >= 0 else "none"
        spread = f"{statistics.median(widths):.2f} ({least} to {max(widths):.1f})"
        collapse = f"in {len(ruined)} of {len(sweeps)} seeds"
        if ruined:
            collapse += f", from {min(ruined):.3g} on at the earliest"
        lines.append(f"| {method} | {spread} | {collapse} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    results = [RESULTS / f"seed_{seed}.csv" for seed in SEEDS]
    for seed, result in zip(SEEDS, results, strict=True):
        if not result.exists():
            run_quickstart(seed, result)
    print(table(results))


if __name__ == "__main__":
    main()
