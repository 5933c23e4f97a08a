"""The quickstart over several seeds: how far its result depends on luck.

    python -m docs.quickstart.seeds

trains as examples/quickstart.py does, with each of twelve seeds, which takes ten minutes on two CPU
cores, unless the results are in docs/quickstart/results already. It draws the pictures of the
quickstart's default seed, and prints the table of tolerated learning rates that is in the README.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from examples import quickstart
from momo_wrap import sweep

RESULTS = Path(__file__).parent / "results"
SEEDS = range(12)
COLLAPSED = 0.5  # accuracy below which a network has not just trained a little worse


def all_results() -> Any:
    """Return the results of all seeds, after the missing runs."""
    return sweep.run(
        {quickstart.TASK: quickstart.train},
        quickstart.OPTIMIZERS,
        quickstart.LEARNING_RATES,
        SEEDS,
        RESULTS / "seeds.csv",
        settings={"epochs": quickstart.EPOCHS},
    )


def of_seed(results: Any, seed: int) -> Any:
    return results[results["seed"] == seed]


def decades(results: Any) -> dict[str, list[float]]:
    """Return over how many decades of lr each optimizer comes near the best, for each seed."""
    found: dict[str, list[float]] = {name: [] for name in quickstart.OPTIMIZERS}
    for seed in SEEDS:
        for base in quickstart.BASES:
            for name, width in quickstart.widths(of_seed(results, seed), base).items():
                found[name].append(width)
    return found


def collapses_from(results: Any, optimizer: str) -> float | None:
    """Return the learning rate from which on training is ruined, if there is one in the sweep."""
    ruined: float | None = None
    rows = results[results["optimizer"] == optimizer].sort_values("lr", ascending=False)
    for lr, accuracy in zip(rows["lr"], rows["score"], strict=True):
        if accuracy >= COLLAPSED:
            break
        ruined = lr
    return ruined


def typical_seed(results: Any) -> int:
    """Return the seed whose widths are nearest to the medians, in all."""
    widths = [[max(width, -0.5) for width in column] for column in decades(results).values()]
    medians = [statistics.median(column) for column in widths]

    def distance(seed: int) -> float:
        pairs = zip(widths, medians, strict=True)
        return sum(abs(column[seed] - median) for column, median in pairs)

    return min(SEEDS, key=distance)


def table(results: Any) -> str:
    """Return the widths of the tolerated ranges over all seeds, as Markdown."""
    lines = ["| | decades of lr: median (range) | collapses at high lr |", "|---|---|---|"]
    for name, widths in decades(results).items():
        found = [collapses_from(of_seed(results, seed), name) for seed in SEEDS]
        ruined = [lr for lr in found if lr is not None]
        least = f"{min(widths):.1f}" if min(widths) >= 0 else "none"
        spread = f"{statistics.median(widths):.2f} ({least} to {max(widths):.1f})"
        collapse = f"in {len(ruined)} of {len(found)} seeds"
        if ruined:
            collapse += f", from {min(ruined):.3g} on at the earliest"
        lines.append(f"| {name} | {spread} | {collapse} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    results = all_results()
    quickstart.plot(of_seed(results, quickstart.SEED), str(RESULTS / "quickstart"))
    print(f"The typical seed is {typical_seed(results)}.")
    print(table(results))


if __name__ == "__main__":
    main()
