"""momo_wrap.sweep."""

import os
import sys

from docs.sweep_engines.task import GRID, LEARNING_RATES, PROCESSES, SEEDS
from examples.lr_sweep import OPTIMIZERS, digits
from momo_wrap import MoMoWrapper, sweep


def train(lr, make_optimizer, seed):
    def logged(params, lr):
        optimizer = make_optimizer(params, lr)
        method = f"{type(getattr(optimizer, 'base', optimizer)).__name__}"
        method += " + MoMo" * isinstance(optimizer, MoMoWrapper)
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{os.getpid()} {method} {lr!r} {seed}\n")
        return optimizer

    return {"score": digits(lr, logged, seed, epochs=4)["score"]}


if __name__ == "__main__":
    where = sys.argv[1]
    table = sweep.run(train, OPTIMIZERS, LEARNING_RATES, SEEDS, where, processes=PROCESSES)
    points = table.groupby(["optimizer", "lr", "seed"]).size()
    print(f"{len(points)} of {len(GRID)} points, {len(table)} rows")
