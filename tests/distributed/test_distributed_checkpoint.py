"""Runs that are saved by torch.distributed.checkpoint go on, also over another number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from momo_wrap import MoMoWrapper
from tests.distributed import training
from tests.distributed.training import Data, MakeOptimizer, Run, distance, share_cut, train_alone
from tests.distributed.world import run_world

HALF = 12
SOME = (training.sgd, training.joint)


def begin(make: MakeOptimizer) -> tuple[nn.Module, MoMoWrapper, Data]:
    """Make a run: on parts of the parameters where there are several ranks."""
    model = training.build_model()
    data = Data(model)
    if dist.is_initialized():
        training.fully_sharded(model)
    return model, make(model), data


def go_on(model: nn.Module, optimizer: MoMoWrapper, data: Data) -> Run:
    alone = not dist.is_initialized()
    part, parts = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    return training.train(model, optimizer, HALF, data, part, parts)


def snapshot(model: nn.Module, optimizer: MoMoWrapper, *, flatten: bool) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def save_each(folder: Path, makes: Sequence[MakeOptimizer], *, flatten: bool) -> list[Run]:
    """Train, save, and return the results of the uninterrupted run."""
    runs = []
    for make in makes:
        model, optimizer, data = begin(make)
        go_on(model, optimizer, data)
        save(snapshot(model, optimizer, flatten=flatten), checkpoint_id=folder / make.__name__)
        runs.append(go_on(model, optimizer, data))
    return runs


def resume_each(folder: Path, makes: Sequence[MakeOptimizer], *, flatten: bool) -> list[Run]:
    """Load into a new run, and continue."""
    runs = []
    for make in makes:
        model, optimizer, data = begin(make)
        state = snapshot(model, optimizer, flatten=flatten)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single")
            load(state, checkpoint_id=folder / make.__name__)
        set_model_state_dict(model, state["model"])
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
        for _ in range(HALF):
            data.next_batch()
        runs.append(go_on(model, optimizer, data))
    return runs


@pytest.mark.parametrize(
    ("flatten", "makes"),
    [
        (False, SOME[:1]),
        pytest.param(False, SOME, marks=pytest.mark.slow),
        pytest.param(False, training.ELEMENTWISE, marks=pytest.mark.slow),
        pytest.param(True, training.ELEMENTWISE, marks=pytest.mark.slow),
    ],
)
def test_run_goes_on(tmp_path: Path, flatten: bool, makes: Sequence[MakeOptimizer]) -> None:
    """Bit for bit over the same ranks; over one or four as one process does without a break."""
    unbroken = run_world(2, save_each, tmp_path, makes, flatten=flatten)
    resumed = {
        "2": run_world(2, resume_each, tmp_path, makes, flatten=flatten)[0],
        "4": run_world(4, resume_each, tmp_path, makes, flatten=flatten)[0],
        "1": run_world(1, resume_each, tmp_path, makes, flatten=flatten)[0],
        "none": resume_each(tmp_path, makes, flatten=flatten),
    }
    for index, make in enumerate(makes):
        alone = train_alone(make, 2 * HALF)
        second_half = Run(alone.params, alone.thetas[HALF:], alone.losses[HALF:])
        assert share_cut(second_half) > 0, make
        assert distance(resumed["2"][index], unbroken[0][index]) == 0.0, make
        for size, runs in resumed.items():
            assert distance(runs[index], second_half) < 1e-10, (make, size)
