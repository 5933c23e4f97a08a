"""accelerate: the same steps as by hand, and runs that go on from a saved state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from momo_wrap import StepRecord
from momo_wrap.integrations import step_metrics, wrapper_of
from tests.integrations import task
from tests.problems import flat, last_step

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator

from momo_wrap.integrations.accelerate import backward, clip_grad_norm_


class Run:
    """The loop of accelerate's documentation, with `backward` for `accelerator.backward`."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, bound: float = 0.1, **settings: Any
    ) -> None:
        self.accelerator = Accelerator(cpu=True, **settings)
        network = task.network(dtype)
        wrapped = task.wrapped(network, bound)
        loader = DataLoader(TensorDataset(*task.data(dtype)), batch_size=task.BATCH_SIZE)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            network, wrapped, loader, task.decreasing(wrapped)
        )
        self.records: list[StepRecord] = task.watched(wrapped)

    def epoch(
        self,
        clip: float | None = None,
        *,
        schedule: bool = False,
        skip: int = 0,
        save_after: int = 0,
        save_to: Path | None = None,
    ) -> None:
        """Train on all batches but the first few, and save on the way."""
        loader = self.accelerator.skip_first_batches(self.loader, skip)
        for number, batch in enumerate(loader, start=skip + 1):
            with self.accelerator.accumulate(self.model):
                backward(self.accelerator, task.loss_of(self.model, batch), self.optimizer)
                if clip is not None:
                    norm = clip_grad_norm_(self.accelerator, self.optimizer, clip)
                    assert (norm is None) == (not self.accelerator.sync_gradients)
                self.optimizer.step()
                if schedule:
                    self.scheduler.step()
                self.optimizer.zero_grad()
            if number == save_after:
                self.accelerator.save_state(str(save_to))

    def params(self) -> Tensor:
        return flat(list(self.model.parameters()))


@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("schedule", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_by_hand(accumulate: int, schedule: bool, clip: float | None) -> None:
    run = Run(gradient_accumulation_steps=accumulate)
    for _ in range(3):
        run.epoch(clip, schedule=schedule)
    params, records = task.by_hand(3, accumulate, clip, schedule=schedule)
    task.assert_same_steps(run.records, records)
    torch.testing.assert_close(run.params(), params, rtol=1e-10, atol=1e-10)


def test_weights_are_those_of_the_mean() -> None:
    run = Run(gradient_accumulation_steps=2)
    for weight, batch in zip((1.0, 3.0), run.loader, strict=False):
        with run.accelerator.accumulate(run.model):
            loss = task.loss_of(run.model, batch)
            backward(run.accelerator, loss, run.optimizer, weight=weight, retain_graph=True)
            run.optimizer.step()
    model = task.network()
    first, second = (task.loss_of(model, batch).detach() for batch in task.batches()[:2])
    (record,) = run.records
    torch.testing.assert_close(record.loss, (first + 3 * second) / 4)


def test_bf16_learns() -> None:
    run = Run(torch.float32, mixed_precision="bf16")
    for _ in range(40):
        run.epoch()
    losses = torch.stack([record.loss for record in run.records]).view(40, -1).mean(1)
    assert losses[-5:].mean() < 0.6 * losses[:2].mean()
    assert any(record.theta < 1 for record in run.records)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_run_that_goes_on_from_a_saved_state_ends_the_same(tmp_path: Path, accumulate: int) -> None:
    """Bit for bit, from the middle of the second epoch."""
    whole = Run(bound=0.4, gradient_accumulation_steps=accumulate)
    whole.epoch(0.5, schedule=True)
    whole.epoch(0.5, schedule=True, save_after=3, save_to=tmp_path)
    whole.epoch(0.5, schedule=True)
    resumed = Run(bound=0.4, gradient_accumulation_steps=accumulate)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch(0.5, schedule=True, skip=3)
    resumed.epoch(0.5, schedule=True)
    assert 0 < len(resumed.records) < len(whole.records)
    assert resumed.records == whole.records[-len(resumed.records) :]
    assert torch.equal(resumed.params(), whole.params())
    assert any(record.theta < 1 for record in resumed.records)


def test_prepared_optimizer_is_looked_through() -> None:
    run = Run()
    assert step_metrics(run.optimizer) == {}
    run.epoch()
    record, wrapper = run.records[-1], wrapper_of(run.optimizer)
    assert last_step(wrapper) == record
    metrics = step_metrics(run.optimizer)
    assert metrics["momo/theta"] is record.theta
    names = ["momo/effective_lr/pg1", "momo/effective_lr/pg2"]
    assert [metrics[name] for name in names] == wrapper.effective_lrs()


def test_bare_step_without_a_loss_raises() -> None:
    run = Run()
    run.accelerator.backward(task.loss_of(run.model, next(iter(run.loader))))
    with pytest.raises(TypeError, match="record_loss"):
        run.optimizer.step()


def test_bare_optimizer_raises() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(
        task.network(), torch.optim.SGD(task.network().parameters())
    )
    loss = task.loss_of(model, task.batches()[0])
    with pytest.raises(TypeError, match=r"MoMoWrapper, .* got SGD in AcceleratedOptimizer"):
        backward(accelerator, loss, optimizer)
    assert all(param.grad is None for param in model.parameters())
