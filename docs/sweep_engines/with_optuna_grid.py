"""Optuna as its manual has it: GridSampler, several processes, a journal or a database."""

import multiprocessing
import sys

import optuna

from docs.sweep_engines.task import GRID, LEARNING_RATES, OPTIMIZERS, PROCESSES, SEEDS, train

SPACE = {"lr": LEARNING_RATES, "method": list(OPTIMIZERS), "seed": list(SEEDS)}


def study(url):
    backend = optuna.storages.journal.JournalFileBackend
    storage = (
        optuna.storages.RDBStorage(url, heartbeat_interval=1, grace_period=5)
        if "://" in url
        else optuna.storages.JournalStorage(backend(url))
    )
    sampler = optuna.samplers.GridSampler(SPACE)
    how = {"study_name": "digits", "load_if_exists": True, "sampler": sampler}
    return optuna.create_study(storage=storage, direction="maximize", **how)


def objective(trial):
    method = trial.suggest_categorical("method", list(OPTIMIZERS))
    lr = trial.suggest_float("lr", 1e-4, 100, log=True)
    return train(lr, method, trial.suggest_int("seed", 0, 2))


def work(url):
    optuna.logging.disable_default_handler()
    study(url).optimize(objective)


if __name__ == "__main__":
    study(sys.argv[1])
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(sys.argv[1],)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    table = study(sys.argv[1]).trials_dataframe()
    table = table[table["state"] == "COMPLETE"]
    points = table.groupby(["params_method", "params_lr", "params_seed"]).size()
    print(f"{len(points)} of {len(GRID)} points, {len(table)} rows")
