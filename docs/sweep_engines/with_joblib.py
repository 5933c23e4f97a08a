"""joblib: a pool of processes, a cache of results on the disk, and a table."""

import sys

import pandas as pd
from joblib import Memory, Parallel, delayed

from docs.sweep_engines.task import GRID, PROCESSES, train

if __name__ == "__main__":
    cached = Memory(sys.argv[1], verbose=0).cache(train)
    jobs = (delayed(cached)(lr, method, seed) for seed, lr, method in GRID)
    scores = Parallel(PROCESSES)(jobs)
    table = pd.DataFrame(GRID, columns=["seed", "lr", "method"]).assign(score=scores)
    print(f"{table['score'].notna().sum()} of {len(GRID)} points, {len(table)} rows")
