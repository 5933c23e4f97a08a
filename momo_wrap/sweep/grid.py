"""The runs of a sweep, and whether what describes them can be used."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from torch.optim import Optimizer

OptimizerFactory = Callable[[Any, float], Optimizer]
Train = Callable[[float, OptimizerFactory, int], Mapping[str, Any]]


class Run(NamedTuple):
    """What tells one training from the others of a sweep."""

    task: str
    optimizer: str
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.optimizer}, lr {self.lr:g}, seed {self.seed}"


class Functions(NamedTuple):
    """The user's functions by name."""

    tasks: dict[str, Train]
    optimizers: dict[str, OptimizerFactory]


def named_functions(
    train: Train | Mapping[str, Train], optimizers: Mapping[str, OptimizerFactory]
) -> Functions:
    """Return the functions by name; a single train function gives its name to its task."""
    if not isinstance(train, Mapping):
        train = {getattr(train, "__name__", "train"): train}
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            f"optimizers must map names to factories, got {type(optimizers).__name__}. "
            'Write {"AdamW": adamw} with a function adamw(params, lr).'
        )
    for kind, functions in (("train", train), ("optimizers", optimizers)):
        if not functions:
            raise ValueError(f"{kind} is empty, so that there is nothing to run.")
        for name, function in functions.items():
            _check_name(kind, name)
            if not callable(function):
                raise TypeError(
                    f"{kind}[{name!r}] must be a function, got {type(function).__name__}."
                )
    return Functions(dict(train), dict(optimizers))


def all_runs(
    functions: Functions, learning_rates: Iterable[float], seeds: Iterable[int]
) -> list[Run]:
    """Return the runs of a sweep, seed by seed, so that a part of it covers the whole grid."""
    rates = sorted(_learning_rate(lr) for lr in learning_rates)
    numbers = [_seed(seed) for seed in seeds]
    _check_distinct("learning_rates", rates)
    _check_distinct("seeds", numbers)
    grid = product(numbers, functions.tasks, rates, functions.optimizers)
    return [Run(task, optimizer, lr, seed) for seed, task, lr, optimizer in grid]


def check_picklable(functions: Functions) -> None:
    """Raise where other processes can't be given a function."""
    for kind, named in (("train", functions.tasks), ("optimizers", functions.optimizers)):
        for name, function in named.items():
            _check_picklable(f"{kind}[{name!r}]", function)


def _check_picklable(name: str, function: object) -> None:
    try:
        pickle.dumps(function)
    except Exception as error:  # what objects raise when they are pickled is up to them
        raise TypeError(
            f"{name} = {function!r} can't be sent to other processes: {error}. Write a function at "
            "the top level of a module (no lambda, none inside another function; functools.partial "
            "of one is fine), or run the sweep in this process with processes=0."
        ) from error


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or name != " ".join(name.split()) or not name:
        raise ValueError(
            f"The names in {kind} must be strings on one line, without spaces at the ends, got "
            f"{name!r}."
        )


def _learning_rate(lr: object) -> float:
    try:
        number = float(lr)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"A learning rate must be a number, got {lr!r}.") from None
    if not 0 < number < math.inf:
        raise ValueError(
            f"A learning rate must be positive and finite, got {number}: it is shown on a "
            "logarithmic axis."
        )
    return number


def _seed(seed: Any) -> int:
    try:
        return int(seed.__index__())
    except AttributeError:
        raise TypeError(f"A seed must be an integer, got {seed!r}.") from None


def _check_distinct(name: str, values: Sequence[float]) -> None:
    if not values:
        raise ValueError(f"{name} is empty, so that there is nothing to run.")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} has a value twice: {list(values)}. Give each once.")
