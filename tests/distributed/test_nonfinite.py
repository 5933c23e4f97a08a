"""A number that is not finite on one rank is one for all of them."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.distributed import local
from tests.distributed import training
from tests.distributed.parallel import DTensor
from tests.distributed.training import Data, build_model, whole
from tests.distributed.world import run_world

Where = Literal["loss", "gradient", "backward"]


def spoiled_steps(nonfinite: Literal["skip", "raise"]) -> list[str]:
    """Spoil a step on the last rank, in each place, and return the results there."""
    found = []
    for sharded in (False, True):
        for where in ("loss", "gradient"):
            model = build_model()
            if sharded:
                training.fully_sharded(model)
            base = AdamW(training.two_groups(model, 0.1))
            optimizer = MoMoWrapper(base, MoMo(training.BOUND), nonfinite=nonfinite)
            training.train(model, optimizer, 2, Data(model))
            before = whole(model)
            entries = {n: optimizer.state[p]["step"].clone() for n, p in model.named_parameters()}
            outcome = spoiled_step(model, optimizer, where)
            after = whole(model)
            unchanged = all(torch.equal(after[name], before[name]) for name in before)
            counted = all(
                torch.equal(optimizer.state[p]["step"], entries[n])
                for n, p in model.named_parameters()
            )
            training.train(model, optimizer, 2, Data(model))
            recovered = all(bool(p.isfinite().all()) for p in whole(model).values())
            found.append(f"{outcome} {unchanged} {counted} {recovered} {optimizer.skipped_steps}")
    return found


def spoiled_step(model: nn.Module, optimizer: MoMoWrapper, where: str) -> str:
    inputs, targets = Data(model).next_batch()
    loss = nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    if dist.get_rank() == dist.get_world_size() - 1:
        grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
        spoiled = loss.detach() if where == "loss" else next(g for g in grads if g.numel())
        spoiled.fill_(torch.nan)
    try:
        optimizer.step(loss=loss)
    except FloatingPointError:
        return "raised"
    return "went on"


@pytest.mark.parametrize(
    ("nonfinite", "expected"),
    [("skip", "went on True True True 1"), ("raise", "raised True True True 0")],
)
def test_all_ranks_take_the_same_decision(
    nonfinite: Literal["skip", "raise"], expected: str
) -> None:
    assert run_world(2, spoiled_steps, nonfinite) == [[expected] * 4] * 2


def propagated() -> bool:
    """Return whether NaN of one rank's loss shows up in the parameters here."""
    model = build_model()
    optimizer = MoMoWrapper(AdamW(model.parameters()))
    spoiled_step(model, optimizer, "loss")
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    return all(bool(p.isnan().all()) for p in whole(model).values())


def test_nan_reaches_all_ranks_by_default() -> None:
    assert run_world(2, propagated) == [True, True]
