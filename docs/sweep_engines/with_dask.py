"""dask.distributed: a scheduler and workers, results cached by joblib, and a table."""

import sys

import pandas as pd
from dask.distributed import Client, LocalCluster
from joblib import Memory

from docs.sweep_engines.task import GRID, PROCESSES, train

if __name__ == "__main__":
    cached = Memory(sys.argv[1], verbose=0).cache(train)
    cluster = LocalCluster(PROCESSES, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        jobs = [client.submit(cached, lr, method, seed) for seed, lr, method in GRID]
        scores = client.gather(jobs)
    table = pd.DataFrame(GRID, columns=["seed", "lr", "method"]).assign(score=scores)
    print(f"{table['score'].notna().sum()} of {len(GRID)} points, {len(table)} rows")
