"""timm: its factory of optimizers, its schedulers and its scaler, in loops like its own."""

from __future__ import annotations

import copy
import importlib
import sys
import types
from typing import Any

import pytest
import torch

from momo_wrap.integrations import losses_from_backward
from momo_wrap.optim import TrustedAdamW
from tests.every import skip_what_timm_imports
from tests.integrations import task
from tests.problems import flat, last_step

skip_what_timm_imports()
factory: Any = pytest.importorskip("timm.optim._optim_factory", reason="timm is not installed")
cosine: Any = pytest.importorskip("timm.scheduler.cosine_lr")


def made(model: Any) -> Any:
    registry = factory.OptimizerRegistry()
    registry.register(factory.OptimInfo("trustedadamw", TrustedAdamW, has_betas=True))
    return registry.create_optimizer(model, "trustedadamw", lr=100.0, weight_decay=0.05)


def test_a_loop_with_its_scheduler_goes_on_from_a_checkpoint() -> None:
    """Bit for bit; the scheduler sets the cap, from a warm-up on."""

    def train(model: Any, optimizer: Any, first: int, last: int) -> list[float]:
        scheduler = cosine.CosineLRScheduler(
            optimizer, t_initial=6, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-4
        )
        scheduler.step(first)
        caps = []
        for epoch in range(first, last):
            for batch in task.batches(torch.float32):
                optimizer.zero_grad()
                loss = task.loss_of(model, batch)
                loss.backward()
                optimizer.step(loss=loss)
            caps.append(optimizer.param_groups[0]["lr"])
            scheduler.step(epoch + 1)
        return caps

    whole = task.network(torch.float32)
    optimizer = made(whole)
    caps = train(whole, optimizer, 0, 3)
    assert caps[0] == 1e-4
    assert max(caps) > 50.0
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, 3, 6)
    resumed = task.network(torch.float32)
    again = made(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, 3, 6)
    assert torch.equal(flat(list(whole.parameters())), flat(list(resumed.parameters())))
    assert last_step(again) == last_step(optimizer)


def test_its_scaler_calls_step_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """NativeScaler takes the loss, and calls `backward()` and a bare step itself."""
    utils = types.ModuleType("timm.utils")  # of which the rest needs torchvision
    (folder,) = sys.modules["timm"].__path__
    utils.__path__ = [f"{folder}/utils"]
    monkeypatch.setitem(sys.modules, "timm.utils", utils)
    scalers: Any = importlib.import_module("timm.utils.cuda")
    model = task.network(torch.float32)
    optimizer = made(model)
    scaler = scalers.NativeScaler(device="cpu")
    losses = []
    with losses_from_backward(optimizer):
        for batch in task.batches(torch.float32):
            optimizer.zero_grad()
            loss = task.loss_of(model, batch)
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
            assert last_step(optimizer).loss == loss.detach()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
