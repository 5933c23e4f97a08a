"""Train functions and optimizers that other processes can import."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import SGD, Optimizer

from momo_wrap import MoMoWrapper, Recorder
from momo_wrap.sweep import OptimizerFactory

LOG, PAUSE = "MOMO_WRAP_TEST_LOG", "MOMO_WRAP_TEST_PAUSE"


def bare(params: Any, lr: float) -> Optimizer:
    return SGD(params, lr=lr)


def wrapped(params: Any, lr: float) -> Optimizer:
    return MoMoWrapper(SGD(params, lr=lr))


OPTIMIZERS: dict[str, OptimizerFactory] = {"SGD": bare, "SGD + MoMo": wrapped}


def quadratic(lr: float, make_optimizer: OptimizerFactory, seed: int) -> dict[str, Any]:
    """Minimise the sum of squares; steps with lr > 1 diverge."""
    param = torch.full((3,), 1.0 + seed, requires_grad=True)
    optimizer = make_optimizer([param], lr)
    recorder = Recorder(optimizer) if isinstance(optimizer, MoMoWrapper) else None
    for _ in range(5):
        loss = (param**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]
        if recorder is not None:
            recorder.record()
    result = {"loss": loss, "score": -loss.detach(), "steps": 5, "process": os.getpid()}
    return result if recorder is None else {**result, "curve": recorder.curve()}


def logged(lr: float, make_optimizer: OptimizerFactory, seed: int) -> dict[str, Any]:
    """Train on random data, with pauses, and leave lines in the log."""
    param = torch.randn(3, requires_grad=True)
    optimizer = make_optimizer([param], lr)
    with Path(os.environ[LOG]).open("a") as log:
        log.write(f"{os.getpid()} {lr!r} {seed} {isinstance(optimizer, MoMoWrapper)}\n")
    for _ in range(10):
        time.sleep(float(os.environ.get(PAUSE, "0")))
        loss = ((param - torch.randn(3)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]
    return {"loss": loss.detach()}


def threads(lr: float, make_optimizer: OptimizerFactory, seed: int) -> dict[str, Any]:
    return {"loss": 0.0, "threads": torch.get_num_threads()}


def draws(lr: float, make_optimizer: OptimizerFactory, seed: int) -> dict[str, Any]:
    return {"loss": torch.rand(()), "numpy": np.random.rand(), "builtin": random.random()}


def faulty(lr: float, make_optimizer: OptimizerFactory, seed: int) -> Any:
    """Fail in a way of its own at each seed."""
    if seed == 0:
        raise KeyError('two\nlines, and "quotes"')
    if seed == 1:
        return {"loss": float("nan"), "score": 0.25}
    if seed == 2:
        raise RuntimeError("two\nlines")
    if seed == 3:
        raise FloatingPointError("the loss is inf")
    if seed == 4:
        return {"accuracy": 1.0}
    if seed == 5:
        return {"loss": torch.ones(2)}
    if seed == 6:
        return {"loss": 1.0, "curve": {"a": [1.0], "b": [1.0, 2.0]}}
    if seed == 7:
        return {"loss": 1.0, "lr": 2.0}
    if seed == 8:
        sys.exit("enough")
    return 1.0 if seed == 9 else {"score": "high", "loss": 1.0}


def two_kinds(lr: float, make_optimizer: OptimizerFactory, seed: int) -> dict[str, Any]:
    return {"loss": 1.0} if seed == 0 else {"loss": 1.0, "score": 1.0}
