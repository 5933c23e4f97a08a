"""A sweep in a process of its own, which a test kills: python -m tests.sweep.killed results.csv."""

from __future__ import annotations

import sys

from momo_wrap import sweep
from tests.sweep.training import bare, logged

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
SEEDS = [0, 1]

if __name__ == "__main__":
    sweep.run(logged, {"SGD": bare}, RATES, SEEDS, sys.argv[1], processes=1)
