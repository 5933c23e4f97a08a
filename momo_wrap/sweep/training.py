"""One run: the user's train function is called, and what it returns becomes a row."""

from __future__ import annotations

import math
import numbers
import random
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

import momo_wrap
from momo_wrap.sweep.curves import curve_path, write_curve
from momo_wrap.sweep.grid import Functions, OptimizerFactory, Run
from momo_wrap.sweep.results_file import COLUMNS, Row, empty_row

_LONGEST_TEXT = 500


class _Observed:
    """A factory that remembers what kind of optimizer it made."""

    def __init__(self, factory: OptimizerFactory) -> None:
        self._factory = factory
        self.wrapped = False
        self.base = ""

    def __call__(self, params: Any, lr: float) -> Optimizer:
        optimizer = self._factory(params, lr)
        self.wrapped = isinstance(optimizer, momo_wrap.MoMoWrapper)
        self.base = type(getattr(optimizer, "base", optimizer)).__name__
        return optimizer


def execute(run: Run, functions: Functions, results_path: Path, settings: Row) -> Row:
    """Train, and return the row of results; an exception of the run becomes one too."""
    row = {**empty_row(run), "settings": settings}
    factory = _Observed(functions.optimizers[run.optimizer])
    _seed_everything(run.seed)
    begin = time.perf_counter()
    try:
        returned = functions.tasks[run.task](run.lr, factory, run.seed)
        row["seconds"] = round(time.perf_counter() - begin, 3)
        row.update(_results(returned, settings))
        if "curve" in returned:
            path = curve_path(results_path, run)
            write_curve(path, _curve(returned["curve"]))
            row["curve"] = path.relative_to(results_path.parent).as_posix()
    except FloatingPointError as error:  # what `nonfinite="raise"` and anomaly checks raise
        row.update(status="diverged", message=_reason(error))
    except (Exception, SystemExit) as error:
        row.update(status="error", message=_reason(error), traceback=traceback.format_exc())
    row["seconds"] = round(time.perf_counter() - begin, 3)
    return {**row, "wrapped": factory.wrapped, "base": factory.base}


def one_line(text: str) -> str:
    """Return a text as it fits into a line of a file."""
    text = " ".join(text.replace("\0", "").split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def plain(name: str, value: Any) -> int | float | str | bool:
    """Return a number, one-element tensor, text or bool as Python's own type."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"{name!r} must be a number, a one-element tensor, a text or a bool, got "
        f"{type(value).__name__}. A series belongs in the mapping under 'curve'."
    )


def _results(returned: Any, settings: Row) -> Row:
    """Return what of a row comes from the train function."""
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"The train function must return a dict with 'loss' or 'score', got "
            f"{type(returned).__name__}."
        )
    given = {str(name): plain(name, v) for name, v in returned.items() if name != "curve"}
    curve = returned.get("curve", {})
    if not {"loss", "score"} & given.keys():
        if "loss" not in curve or len(curve["loss"]) == 0:
            raise ValueError(
                f"The train function must return 'loss' or 'score', or a 'curve' with 'loss', "
                f"got {sorted(map(str, returned))}."
            )
        given["loss"] = plain("loss", curve["loss"][-1])
    main: Row = {name: float(given.pop(name)) for name in ("loss", "score") if name in given}
    if taken := sorted(given.keys() & {*COLUMNS, "traceback", *settings}):
        raise ValueError(f"Results can't be called {taken}: there are such columns already.")
    bad = [f"{name} is {value}" for name, value in main.items() if not math.isfinite(value)]
    return {
        **main,
        "results": given,
        "status": "diverged" if bad else "ok",
        "message": ", ".join(bad),
    }


def _curve(curve: Any) -> dict[str, list[float]]:
    columns = {str(name): np.asarray(values).tolist() for name, values in dict(curve).items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a curve must be equally long, got {lengths}.")
    return columns


def _reason(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{one_line(f'{type(error).__name__}: {error}')}{place}"


def _seed_everything(seed: int) -> None:
    """Seed what a train function may draw from: it must not matter what ran before in here."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
