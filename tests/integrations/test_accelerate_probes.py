"""accelerate: the probe that `backward` is given is that of the batches of the step."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import MoMo, MoMoWrapper, StepRule
from tests.integrations import task
from tests.integrations.probing import Losses, Watching, assert_same, by_hand

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator

from momo_wrap.integrations.accelerate import backward

EPOCHS = 2


def mean_losses(model: nn.Module, batches: Any) -> list[Tensor]:
    return [task.loss_of(model, batch) / len(batches) for batch in batches]


def bf16_losses(model: nn.Module, batches: Any) -> list[Tensor]:
    losses = []
    for inputs, targets in batches:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(inputs)
        losses.append(nn.functional.mse_loss(outputs.float(), targets) / len(batches))
    return losses


class Run:
    """The loop of the documentation, with a probe."""

    def __init__(self, rule: StepRule, dtype: torch.dtype = torch.float64, **settings: Any) -> None:
        self.accelerator = Accelerator(cpu=True, **settings)
        network, self.dtype = task.network(dtype), dtype
        optimizer: Any = task.wrapped(network, rule=rule)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.probes = 0

    def loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.probes += not torch.is_grad_enabled()
        return task.loss_of(self.model, (inputs, targets))

    def train(self) -> None:
        for batch in EPOCHS * task.batches(self.dtype):
            with self.accelerator.accumulate(self.model):
                probe = partial(self.loss_of, *batch)
                backward(self.accelerator, self.loss_of(*batch), self.optimizer, probe=probe)
                self.optimizer.step()
                self.optimizer.zero_grad()


@pytest.mark.parametrize(
    ("dtype", "precision", "losses_of", "tolerance"),
    [(torch.float64, "no", mean_losses, 1e-9), (torch.float32, "bf16", bf16_losses, 1e-4)],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_difference_of_the_losses_of_all_batches_of_the_step(
    accumulate: int, dtype: torch.dtype, precision: str, losses_of: Losses, tolerance: float
) -> None:
    rule = Watching()
    run = Run(rule, dtype, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    run.train()
    starts = range(0, task.BATCHES, accumulate)
    steps = EPOCHS * [task.batches(dtype)[start : start + accumulate] for start in starts]
    model = task.network(dtype)
    assert_same(rule.seen, by_hand(model, task.wrapped(model), steps, losses_of), tolerance)
    assert run.probes == accumulate * ((len(steps) - 1) // 3)


def test_a_rule_that_wants_none_costs_nothing() -> None:
    run = Run(MoMo(0.1), gradient_accumulation_steps=2)
    run.train()
    assert run.probes == 0


def test_batches_are_let_go_where_nothing_is_probed() -> None:
    run = Run(MoMo(0.1), gradient_accumulation_steps=3)
    alive = []
    for _ in range(2):
        inputs, targets = (tensor.clone() for tensor in task.batches()[0])
        alive.append(weakref.ref(inputs))
        with run.accelerator.accumulate(run.model):
            probe = partial(run.loss_of, inputs, targets)
            backward(run.accelerator, run.loss_of(inputs, targets), run.optimizer, probe=probe)
        del inputs, probe
        gc.collect()
        assert [batch() for batch in alive] == [None] * len(alive)


def test_a_function_that_reads_a_variable_raises() -> None:
    """At the end of the step it would return the loss of the last batch for all of them."""
    run = Run(Watching(), gradient_accumulation_steps=2)

    def train() -> None:
        for batch in task.batches():
            with run.accelerator.accumulate(run.model):
                probe = lambda: run.loss_of(*batch)  # noqa: B023, E731
                backward(run.accelerator, run.loss_of(*batch), run.optimizer, probe=probe)
                run.optimizer.step()
                run.optimizer.zero_grad()

    with pytest.raises(ValueError, match=r"for two batches.*functools.partial\(loss_of, inputs"):
        train()


def test_weights_are_those_of_the_mean() -> None:
    rule = Watching()
    run = Run(rule, gradient_accumulation_steps=2)
    optimizer: MoMoWrapper = run.optimizer.optimizer
    before = task.network()
    for number, batch in enumerate(task.batches()):
        probe, weight = partial(run.loss_of, *batch), 1.0 + 2 * (number % 2)
        if number == 6:
            now = task.network()
            now.load_state_dict(run.model.state_dict())
        with run.accelerator.accumulate(run.model):
            loss = run.loss_of(*batch)
            backward(run.accelerator, loss, run.optimizer, weight, probe=probe)
            if number == 5:
                before.load_state_dict(run.model.state_dict())
            run.optimizer.step()
            run.optimizer.zero_grad()
    last = task.batches()[6:]
    then, since = ([float(task.loss_of(m, b).detach()) for b in last] for m in (before, now))
    expected = (then[0] + 3 * then[1]) / 4 - (since[0] + 3 * since[1]) / 4
    assert optimizer.rule is rule
    assert rule.seen[-1] == pytest.approx(expected, rel=1e-9)
    assert abs(expected) > 1e-4
