"""ignite: the same steps as by hand, schedulers, and runs that go on from a checkpoint."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import StepRecord
from momo_wrap.integrations import losses_from_backward
from momo_wrap.integrations.ignite import recorded
from tests.integrations import task
from tests.problems import flat, last_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ignite.engine", reason="ignite is not installed")
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import Checkpoint, DiskSaver, create_lr_scheduler_with_warmup
    from ignite.handlers.param_scheduler import LinearCyclicalScheduler, LRScheduler
    from ignite.metrics import Loss

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ignite")
loss_function = nn.functional.mse_loss


class Run:
    """A network, its optimizer and a trainer that records the losses, or a plain one."""

    def __init__(self, *, plain: bool = False, scheduled: bool = False, **settings: Any) -> None:
        self.model = task.network()
        self.optimizer = task.wrapped(self.model)
        self.records = task.watched(self.optimizer)
        self.loss = loss_function if plain else recorded(loss_function, self.optimizer)
        self.trainer: Any = create_supervised_trainer(
            self.model, self.optimizer, self.loss, **settings
        )
        parts = {"model": self.model, "optimizer": self.optimizer, "trainer": self.trainer}
        if scheduled:
            parts["scheduler"] = scheduler = LRScheduler(task.decreasing(self.optimizer))
            self.trainer.add_event_handler(Events.ITERATION_STARTED, scheduler)
        self.parts: dict[str, Any] = parts

    def params(self) -> Tensor:
        return flat(list(self.model.parameters()))


def check(run: Run, expected: tuple[Tensor, list[StepRecord]]) -> None:
    task.assert_same_steps(run.records, expected[1])
    torch.testing.assert_close(run.params(), expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("accumulate", "scheduled"), [(1, False), (1, True), (4, False)])
def test_steps_are_those_by_hand(accumulate: int, scheduled: bool) -> None:
    run = Run(gradient_accumulation_steps=accumulate, scheduled=scheduled)
    run.trainer.run(task.batches(), max_epochs=3)
    check(run, task.by_hand(3, accumulate, schedule=scheduled))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_unmodified_trainer_with_losses_from_backward(accumulate: int) -> None:
    run = Run(plain=True, gradient_accumulation_steps=accumulate)
    with losses_from_backward(run.optimizer):
        run.trainer.run(task.batches(), max_epochs=3)
    check(run, task.by_hand(3, accumulate))


@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")
@pytest.mark.parametrize("plain", [False, True], ids=["recorded", "from backward"])
def test_scale_of_a_grad_scaler_is_undone(plain: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run = Run(plain=plain, amp_mode="amp", scaler=scaler, gradient_accumulation_steps=2)
    if plain:
        with losses_from_backward(run.optimizer):
            run.trainer.run(task.batches(), max_epochs=3)
    else:
        run.trainer.run(task.batches(), max_epochs=3)
    check(run, task.by_hand(3, 2))


def test_evaluations_in_between_are_not_recorded() -> None:
    run = Run()
    evaluator = create_supervised_evaluator(run.model, {"loss": Loss(run.loss)})
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=3), lambda: evaluator.run(task.batches())
    )
    run.trainer.run(task.batches(), max_epochs=3)
    check(run, task.by_hand(3))


@pytest.mark.parametrize("plain", [False, True], ids=["recorded", "from backward"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_the_same(tmp_path: Path, plain: bool) -> None:
    """Bit for bit, with the schedule."""
    whole, resumed = (Run(plain=plain, scheduled=True) for _ in range(2))
    handler = Checkpoint(whole.parts, DiskSaver(tmp_path, require_empty=False), n_saved=None)
    whole.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), handler)
    both = losses_from_backward(whole.optimizer, resumed.optimizer)
    with both if plain else nullcontext():
        whole.trainer.run(task.batches(), max_epochs=3)
        (path,) = tmp_path.glob("*.pt")
        Checkpoint.load_objects(resumed.parts, torch.load(path, weights_only=True))
        resumed.trainer.run(task.batches(), max_epochs=3)
    assert len(resumed.records) == 2 * task.BATCHES
    assert torch.equal(resumed.params(), whole.params())
    assert last_step(resumed.optimizer) == last_step(whole.optimizer)


def test_schedulers_of_ignite_set_the_cap() -> None:
    run = Run()
    cycle = LinearCyclicalScheduler(run.optimizer, "lr", 1.0, 0.1, 8, param_group_index=0)
    cycle = create_lr_scheduler_with_warmup(cycle, warmup_start_value=0.0, warmup_duration=4)
    run.trainer.add_event_handler(Events.ITERATION_STARTED, cycle)
    caps: list[float] = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: caps.append(run.optimizer.param_groups[0]["lr"])
    )
    run.trainer.run(task.batches(), max_epochs=2)
    assert caps[0] == 0.0
    assert max(caps) == 1.0
    assert len(run.records) == 2 * task.BATCHES


def test_without_a_loss_the_error_names_the_integration() -> None:
    run = Run(plain=True)
    with pytest.raises(TypeError, match=r"ignite calls it: .* recorded\(loss_function, optimizer"):
        run.trainer.run(task.batches())


def test_only_a_wrapper_is_accepted() -> None:
    with pytest.raises(TypeError, match="got SGD"):
        recorded(loss_function, torch.optim.SGD(task.network().parameters()))
