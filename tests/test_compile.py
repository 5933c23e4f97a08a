"""torch.compile around a training step: parameters, state and records are those without it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, TrustedMoMo
from tests.problems import last_step

pytestmark = [
    # When torch's compiler is imported, and when it looks at a loss that it is given.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

STEPS = 6

Params = list[Tensor]
RULE = MoMo(0.5)
MAKES: dict[str, Callable[[Params], MoMoWrapper]] = {
    "SGD": lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9), RULE),
    "AdamW": lambda p: MoMoWrapper(AdamW(p, lr=0.05), MoMoStar()),
    "trusted": lambda p: MoMoWrapper(AdamW(p, lr=5.0, weight_decay=0.1), TrustedMoMo()),
    "proposed": lambda p: MoMoWrapper(Adam(p, lr=0.5), RULE, adapter=ProposingAdapter()),
    "several": lambda p: MoMoWrapper([AdamW(p[:2], lr=0.5), SGD(p[2:], lr=0.5)], RULE),
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    # The log of all that torch compiles, which pytest would keep, takes a fifth of the time.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


class Training:
    """A small network on fixed data, with an optimizer and a step function."""

    def __init__(self, make: Callable[[Params], MoMoWrapper]) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.inputs, self.targets = torch.randn(64, 5).double(), torch.randn(64, 3).double()
        self.optimizer = make(list(self.model.parameters()))

    def batches(self, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            yield self.inputs[8 * step : 8 * step + 16], self.targets[8 * step : 8 * step + 16]

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        loss.backward()
        return loss

    def whole(self, *batch: Tensor) -> Tensor:
        loss = self.backward(*batch)
        self.optimizer.step(loss=loss)
        return loss.detach()

    def closure(self, *batch: Tensor) -> Tensor:
        loss = self.optimizer.step(lambda: self.backward(*batch))
        assert isinstance(loss, Tensor)
        return loss.detach()

    def recorded(self, *batch: Tensor) -> Tensor:
        loss = self.backward(*batch)
        self.optimizer.record_loss(loss)
        self.optimizer.step()
        return loss.detach()

    def told(self) -> dict[str, Any]:
        """All that can be seen after a step."""
        return {
            "params": [param.detach().clone() for param in self.model.parameters()],
            "state": self.optimizer.state_dict(),
            "last_step": asdict(last_step(self.optimizer)),
            "effective_lrs": self.optimizer.effective_lrs(),
        }


def assert_same_runs(
    make: Callable[[Params], MoMoWrapper],
    body: Callable[[Training], Callable[..., Tensor]],
    is_compiled: Callable[[int], bool] = lambda _: True,
) -> None:
    """Compare a run whose body is compiled, in some steps or all, with one where it is not."""
    plain, other = Training(make), Training(make)
    step, eager = torch.compile(body(other), backend="eager"), body(other)
    fractions = []
    for number, batch in enumerate(plain.batches()):
        loss = (step if is_compiled(number) else eager)(*batch)
        expected = body(plain)(*batch)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.told(), plain.told(), rtol=1e-12, atol=1e-12)
        fractions.append(float(last_step(plain.optimizer).theta))
    assert any(0 < theta < 1 for theta in fractions)


@every_make
def test_compiled_training_step(make: Callable[[Params], MoMoWrapper]) -> None:
    assert_same_runs(make, lambda training: training.whole)


@pytest.mark.parametrize("form", ["closure", "recorded"])
def test_closures_and_recorded_losses(form: str) -> None:
    def body(training: Training) -> Callable[..., Tensor]:
        step: Callable[..., Tensor] = getattr(training, form)
        return step

    assert_same_runs(MAKES["SGD"], body)


def test_eager_steps_in_between() -> None:
    assert_same_runs(MAKES["AdamW"], lambda training: training.whole, lambda step: step % 2 == 0)


@every_make
def test_compiled_model(make: Callable[[Params], MoMoWrapper]) -> None:
    """The usual way: the model is compiled, and the step is taken as it is."""
    plain, other = Training(make), Training(make)
    other.model = torch.compile(other.model, backend="aot_eager")
    for batch in plain.batches():
        expected, loss = plain.whole(*batch), other.whole(*batch)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.told(), plain.told(), rtol=1e-9, atol=1e-12)


def test_steps_that_are_skipped_are_counted() -> None:
    training = Training(lambda p: MoMoWrapper(AdamW(p, lr=0.05), RULE, nonfinite="skip"))
    compiled = torch.compile(training.whole, backend="eager")
    for inputs, targets in training.batches(3):
        compiled(inputs * math.nan, targets)
    assert training.optimizer.skipped_steps == 3
    assert training.optimizer.last_step is None
