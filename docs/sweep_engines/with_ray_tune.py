"""Ray Tune: grid_search, and Tuner.restore after a crash."""

import sys
from pathlib import Path

import ray
from ray import tune

from docs.sweep_engines.task import GRID, LEARNING_RATES, OPTIMIZERS, PROCESSES, SEEDS, train

SPACE = {
    "seed": tune.grid_search(list(SEEDS)),
    "lr": tune.grid_search(LEARNING_RATES),
    "method": tune.grid_search(list(OPTIMIZERS)),
}


def objective(config):
    return {"score": train(**config)}


if __name__ == "__main__":
    folder = Path(sys.argv[1]).absolute()
    ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False)
    failures = tune.FailureConfig(max_failures=3)
    kept = tune.RunConfig(
        name="digits", storage_path=str(folder), failure_config=failures, verbose=0
    )
    if tune.Tuner.can_restore(str(folder / "digits")):
        tuner = tune.Tuner.restore(str(folder / "digits"), objective, resume_errored=True)
    else:
        reused = tune.TuneConfig(reuse_actors=True)
        tuner = tune.Tuner(objective, param_space=SPACE, run_config=kept, tune_config=reused)
    table = tuner.fit().get_dataframe()
    table = table[table["score"].notna()]
    points = table.groupby(["config/method", "config/lr", "config/seed"]).size()
    print(f"{len(points)} of {len(GRID)} points, {len(table)} rows")
