"""One run: call the user's train function, and turn its return value into a row."""

from __future__ import annotations

import math
import platform
import random
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from operator import index
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer

import momo_wrap
from momo_wrap.sweep.results_file import COLUMNS, VERSIONS, Row, Run, save
from momo_wrap.sweep.storage import Trials

OptimizerFactory = Callable[[Any, float], Optimizer]
Train = Callable[[float, OptimizerFactory, int], Mapping[str, Any]]
DEATHS = 5  # a run that has cost so many processes is an error


@dataclass
class Work:
    """What the processes of a sweep are given."""

    trials: Trials
    runs: list[Run]
    tasks: Mapping[str, Train]
    optimizers: Mapping[str, OptimizerFactory]
    settings: dict[str, Any]

    def train_one(self) -> bool:
        """Train a run without a result that no process trains; return whether there was one."""
        claim = self.trials.claim(self.runs)
        if claim is None:
            return False
        with self.trials.training(claim):
            self.trials.finish(claim.trial, self._trained(claim.run, claim.deaths))
        return True

    def _trained(self, run: Run, deaths: int) -> Row:
        """Train, and return the row of results; an exception of the run becomes one too."""
        row: Row = {**dict.fromkeys(COLUMNS, ""), **run._asdict(), **versions(), "traceback": ""}
        row |= {"score": math.nan, "loss": math.nan, "results": {}, "wrapped": False}
        row |= {"settings": self.settings, "status": "ok"}
        begin = time.perf_counter()
        try:
            self._train(run, deaths, row)
        except (Exception, SystemExit) as error:
            # A FloatingPointError is what `nonfinite="raise"` and anomaly checks raise.
            status = "diverged" if isinstance(error, FloatingPointError) else "error"
            message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            row |= {"status": status, "message": message, "traceback": traceback.format_exc()}
        row["seconds"] = round(time.perf_counter() - begin, 3)
        return row

    def _train(self, run: Run, deaths: int, row: Row) -> None:
        """Train, and put the return value, and the kind of the optimizer, into a row."""

        def factory(params: Any, lr: float) -> Optimizer:
            optimizer = self.optimizers[run.optimizer](params, lr)
            row["wrapped"] = isinstance(optimizer, momo_wrap.MoMoWrapper)
            row["base"] = type(getattr(optimizer, "base", optimizer)).__name__
            return optimizer

        if deaths >= DEATHS:
            raise RuntimeError(f"Its process died, in {deaths} of {deaths} attempts.")
        torch.manual_seed(run.seed)  # it must not matter what ran before in this process
        random.seed(run.seed)
        np.random.seed(run.seed % 2**32)
        returned = dict(self.tasks[run.task](run.lr, factory, run.seed))
        curve = returned.pop("curve", None)
        main = [name for name in ("loss", "score") if name in returned]
        found = plain(returned, {*COLUMNS, *self.settings} - {*main})
        row |= {name: float(found.pop(name)) for name in main}
        row["results"] = found
        if not main:
            raise ValueError(f"It must return 'loss' or 'score', got {sorted(returned)}.")
        if curve is not None:
            row["curve"] = self._save_curve(run, curve)
        if bad := [f"{name} is {row[name]}" for name in main if not math.isfinite(row[name])]:
            raise FloatingPointError(", ".join(bad))

    def _save_curve(self, run: Run, curve: Any) -> str:
        """Write a curve into a folder beside the file of results, and return its relative path."""
        folder = self.trials.path.with_name(f"{self.trials.path.stem}_curves")
        name = f"{run.task}, {run.optimizer}, lr {run.lr!r}, seed {run.seed}"
        path = folder / f"{quote(name, safe=' ,+')}.csv"
        save(pd.DataFrame(curve), path)
        return path.relative_to(folder.parent).as_posix()


def all_runs(
    tasks: Mapping[str, Train],
    optimizers: Mapping[str, OptimizerFactory],
    learning_rates: Iterable[float],
    seeds: Iterable[int],
) -> list[Run]:
    """Return the runs of a sweep, seed by seed, so that a part of it covers the whole grid."""
    rates, numbers = sorted(map(float, learning_rates)), [index(seed) for seed in seeds]
    if not hasattr(optimizers, "values"):
        raise TypeError(f'optimizers must be functions by name, {{"AdamW": adamw}}: {optimizers}')
    if not all(map(callable, [*tasks.values(), *optimizers.values()])):
        raise TypeError(f"Expected functions by name, got {tasks} and {optimizers}.")
    axes: dict[str, list[Any]] = {"train": [*tasks], "optimizers": [*optimizers]}
    for axis, values in {**axes, "learning_rates": rates, "seeds": numbers}.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{axis} must have values, and each once, got {values}.")
    if not all(0 < lr < math.inf for lr in rates):
        raise ValueError(f"Learning rates must be positive and finite, got {rates}.")
    grid = product(numbers, tasks, rates, optimizers)
    return [Run(task, optimizer, lr, seed) for seed, task, lr, optimizer in grid]


def plain(values: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return numbers, one-element tensors, texts and bools as Python's own types."""
    if clash := sorted({*values} & {*taken}):
        raise ValueError(f"{clash} can't be given: there are such columns already. Rename them.")
    found = {}
    for name, value in values.items():
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            value = value.item()
        if not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                f"{name!r} must be a number, a one-element tensor, a text or a bool, got "
                f"{type(value).__name__}. A series belongs under 'curve'."
            )
        found[name] = value
    return found


def versions() -> dict[str, str]:
    """Return the versions of what the results depend on."""
    own = (momo_wrap.__version__, str(torch.__version__), platform.python_version())
    return dict(zip(VERSIONS, own, strict=True))
