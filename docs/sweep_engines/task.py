"""The sweep that each engine is given: digits, 4 methods, 10 learning rates, 3 seeds."""

from __future__ import annotations

import os
from itertools import product

import torch

from examples.lr_sweep import OPTIMIZERS, digits

PROCESSES = 2
LEARNING_RATES = [10 ** (-4 + 2 * i / 3) for i in range(10)]
SEEDS = range(3)
GRID = list(product(SEEDS, LEARNING_RATES, OPTIMIZERS))


def train(lr: float, method: str, seed: int) -> float:
    """Train once; each call leaves a line in the file that the variable LOG names."""
    torch.set_num_threads(1)
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.getpid()} {method} {lr!r} {seed}\n")
    return float(digits(lr, OPTIMIZERS[method], seed, epochs=4)["score"])
