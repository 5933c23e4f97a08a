"""Scaled losses, autocast, and parameters in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from tests.problems import flat, last_step

BASES: dict[str, Callable[[Any], MoMoWrapper]] = {
    "SGD": lambda p: MoMoWrapper(SGD(p, lr=1.0, momentum=0.9, dampening=0.9), MoMo(0.02)),
    "AdamW": lambda p: MoMoWrapper(AdamW(p, lr=0.3), MoMo(0.02)),
    "AdamW-fused": lambda p: MoMoWrapper(AdamW(p, lr=0.3, fused=True), MoMo(0.02)),
    "proposed": lambda p: MoMoWrapper(Adam(p, lr=0.3), MoMo(0.02), adapter=ProposingAdapter()),
}


def model_and_data(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)
    inputs = torch.randn(64, 6).to(dtype)
    return model, inputs, torch.tanh(inputs @ torch.randn(6, 2).to(dtype))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    # Not mse_loss, which torch has for bfloat16 on the CPU only from 2.5 on.
    loss: Tensor = (model(inputs) - targets).square().mean()
    return loss


def params_of(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


@pytest.mark.parametrize("record", [False, True], ids=["step(loss=loss)", "record_loss"])
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_scaler_changes_nothing_but_the_steps_that_it_skips(
    make: Callable[[Any], MoMoWrapper], record: bool
) -> None:
    """The scale is a power of two, so gradients are the same bit for bit."""
    (scaled, *data), (plain, *_) = model_and_data(), model_and_data()
    with_scaler, without = make(scaled.parameters()), make(plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    skipped, cut = 0, 0
    for step in range(30):
        overflows = step % 6 == 4
        loss = loss_of(scaled, *data)
        with_scaler.zero_grad()
        scaler.scale(loss).backward()
        if overflows:
            params_of(scaled)[0].grad.view(-1)[3] = float("inf")  # type: ignore[union-attr]
        before = copy.deepcopy(with_scaler.state_dict())
        if record:
            with_scaler.record_loss(loss)
            scaler.step(with_scaler)
        else:
            scaler.step(with_scaler, loss=loss)
        scaler.update()
        if overflows:
            skipped += 1
            assert str(with_scaler.state_dict()) == str(before)
            continue
        loss = loss_of(plain, *data)
        without.zero_grad()
        loss.backward()
        without.step(loss=loss)
        cut += int(0 < last_step(without).theta < 1)
        assert last_step(with_scaler).theta == last_step(without).theta
        assert torch.equal(flat(params_of(scaled)), flat(params_of(plain)))
    assert skipped == 5
    assert cut > 0


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_unscaling_by_hand_for_clipping(make: Callable[[Any], MoMoWrapper]) -> None:
    model, *data = model_and_data()
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    start = float(loss_of(model, *data).detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, *data)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer, loss=loss)
        scaler.update()
    assert float(loss_of(model, *data).detach()) < 0.5 * start


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_autocast(make: Callable[[Any], MoMoWrapper]) -> None:
    """The forward pass in bfloat16, parameters and model of the loss in float32."""
    model, *data = model_and_data()
    optimizer = make(model.parameters())
    start = float(loss_of(model, *data).detach())
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, *data)
        loss.backward()
        optimizer.step(loss=loss)
    assert last_step(optimizer).theta.dtype is torch.float32
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert float(loss_of(model, *data).detach()) < 0.3 * start


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_parameters_in_bfloat16(make: Callable[[Any], MoMoWrapper]) -> None:
    model, *data = model_and_data(torch.bfloat16)
    optimizer = make(model.parameters())
    start = float(loss_of(model, *data).detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(model, *data)
        loss.backward()
        optimizer.step(loss=loss)
    assert last_step(optimizer).theta.dtype is torch.float32
    assert all(p.dtype is torch.bfloat16 for p in model.parameters())
    assert float(loss_of(model, *data).detach()) < 0.3 * start


def test_scaler_knows_nothing_of_the_base() -> None:
    """Fused bases unscale in their own step; wrapped ones leave it to the scaler."""
    optimizer: Optimizer = BASES["AdamW-fused"](model_and_data()[0].parameters())
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("first", ["record", "backward"])
@pytest.mark.parametrize(
    ("dtype", "set_to_none", "batches"), [(torch.float16, True, 1), (torch.bfloat16, False, 3)]
)
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_losses_of_skipped_steps_are_forgotten_without_zero_grad(
    make: Callable[[Any], MoMoWrapper],
    dtype: torch.dtype,
    set_to_none: bool,
    batches: int,
    first: str,
) -> None:
    """Only `model.zero_grad()` is called; one batch of a step overflows, or its gradients do."""
    model, *data = model_and_data()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    skipped = 0
    for step in range(12):
        overflow = {3: float("inf"), 4: 1e38, 8: float("nan")}.get(step)
        model.zero_grad(set_to_none)
        losses = []
        for batch in range(batches):
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, *data)
            if overflow is not None and batch == 0:
                loss = loss * overflow
            losses.append(float(loss.detach()))
            if first == "record":
                optimizer.record_loss(loss)
            scaler.scale(loss / batches).backward()
            if first == "backward":
                optimizer.record_loss(loss)
        before, record = flat(params_of(model)), optimizer.last_step
        scaler.step(optimizer)
        scaler.update()
        if overflow is None:
            mean = float(last_step(optimizer).loss)
            assert mean == pytest.approx(sum(losses) / batches, rel=1e-6)
        else:
            skipped += 1
            assert torch.equal(flat(params_of(model)), before)
            assert optimizer.last_step == record
    assert skipped == 3
    assert flat(params_of(model)).isfinite().all()
