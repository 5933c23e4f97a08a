"""Lightning: a rule that wants probes gets them, and nothing is left of the repeated steps."""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from momo_wrap import ModelStats, MoMo, MoMoWrapper, StepRule
from tests.integrations import task
from tests.integrations.probing import Watching, assert_same, by_hand
from tests.problems import flat

pytest.importorskip("lightning", reason="Lightning is not installed")

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection

from momo_wrap.integrations.lightning import MoMoCallback
from tests.integrations.test_lightning import loader, pytestmark, trainer

__all__ = ["pytestmark"]
EPOCHS = 2


class Probed(pl.LightningModule):
    """The network of the task, with a rule of one's choice."""

    def __init__(
        self, rule: StepRule | None = None, dtype: torch.dtype = torch.float64, *extra: nn.Module
    ) -> None:
        super().__init__()
        self.network = nn.Sequential(*task.network(dtype), *extra)
        self.rule = rule or Watching()
        self.calls: list[bool] = []  # whether gradients were recorded

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        calls.append(torch.is_grad_enabled())
        return task.loss_of(self.network, batch)

    def configure_optimizers(self) -> MoMoWrapper:
        return task.wrapped(self.network, rule=self.rule)


calls: list[bool] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def steps(accumulate: int = 1, dtype: torch.dtype = torch.float64) -> list[list[task.Batch]]:
    """The batches of the steps of all epochs."""
    starts = range(0, task.BATCHES, accumulate)
    return EPOCHS * [task.batches(dtype)[start : start + accumulate] for start in starts]


def mean_losses(model: nn.Module, batches: Any) -> list[Tensor]:
    return [task.loss_of(model, batch) / len(batches) for batch in batches]


def expected(
    accumulate: int = 1, losses_of: Any = mean_losses, dtype: torch.dtype = torch.float64
) -> list[float]:
    model = task.network(dtype)
    return by_hand(model, task.wrapped(model), steps(accumulate, dtype), losses_of)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_difference_of_the_losses_of_all_batches_of_the_step(accumulate: int) -> None:
    rule = Watching()
    fit = trainer(max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    fit.fit(Probed(rule), loader())
    found = expected(accumulate)
    assert len(found) == EPOCHS * task.BATCHES // accumulate
    assert_same(rule.seen, found)
    probes = (len(found) - 1) // 3
    assert calls.count(True) == EPOCHS * task.BATCHES
    assert calls.count(False) == accumulate * probes > 0  # one for each batch of the step


def test_a_rule_that_wants_none_costs_nothing() -> None:
    trainer(max_epochs=EPOCHS, accumulate_grad_batches=2).fit(Probed(MoMo(0.1)), loader())
    assert calls == [True] * EPOCHS * task.BATCHES


@pytest.mark.parametrize("due", [False, True])
def test_batches_are_let_go(due: bool) -> None:
    """At once where nothing is to be probed, else with the step."""

    class Always(Watching):
        def wants_probe(self, stats: ModelStats) -> bool:
            return due

    class Alive(pl.Callback):
        def __init__(self) -> None:
            self.batches: list[Any] = []
            self.alive: list[int] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.batches.append(weakref.ref(batch[0]))

        def on_before_optimizer_step(self, *_: Any) -> None:
            gc.collect()
            self.alive.append(sum(batch() is not None for batch in self.batches[-4:-1]))

    class Fresh(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for inputs, targets in task.batches():
                yield inputs.clone(), targets.clone()

    alive = Alive()
    data = torch.utils.data.DataLoader(Fresh(), batch_size=None)
    fit = trainer(alive, max_epochs=EPOCHS, accumulate_grad_batches=4)
    fit.fit(Probed(Always()), data)
    # The first step has no step before that could be probed.
    assert alive.alive == [0, *[3 if due else 0] * (EPOCHS * 2 - 1)]
    gc.collect()
    assert all(batch() is None for batch in alive.batches[:-1])


class Traced(Probed):
    """It counts, collects, logs and keeps statistics, of which a probe must leave no trace."""

    def __init__(self, rule: StepRule) -> None:
        super().__init__(rule, torch.float64, nn.Dropout(0.3), nn.BatchNorm1d(2).double())
        self.mean, self.error = MeanMetric(), MeanSquaredError()
        both: Any = {"first": MeanSquaredError(), "second": MeanSquaredError(squared=False)}
        self.both = MetricCollection(both)
        self.samples = 0
        self.collected: list[float] = []
        self.by_name: dict[str, list[float]] = {"losses": []}
        self.total = torch.zeros(())
        self.logged: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        outputs = self.network(inputs)
        loss = nn.functional.mse_loss(outputs, targets)
        calls.append(torch.is_grad_enabled())
        self.mean.update(loss.detach())
        self.error(outputs.detach().flatten(), targets.flatten())
        self.both(outputs.detach().flatten(), targets.flatten())
        self.samples += len(inputs)
        self.collected.append(loss.item())
        self.by_name["losses"].append(loss.item())
        self.total += loss.detach().float()
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("error", self.error, on_step=True, on_epoch=True)
        self.log_dict(self.both, on_step=False, on_epoch=True)
        return {"loss": loss, "extra": 1}


def test_nothing_is_left_of_a_probe() -> None:
    """Parameters, statistics, logs, metrics, attributes and random numbers, bit for bit."""
    found = []
    for rule in (MoMo(0.1), Watching()):
        pl.seed_everything(0, verbose=False)
        module = Traced(rule)
        fit = trainer(max_epochs=EPOCHS, accumulate_grad_batches=2)
        fit.fit(module, loader())
        found.append((module, fit, torch.rand(2)))
    (plain, one, number), (probed, other, same) = found
    assert calls.count(False) == 2 * 2 * 2  # both losses of two batches, for dropout
    assert torch.equal(number, same)
    assert torch.equal(flat(list(plain.parameters())), flat(list(probed.parameters())))
    for name, buffer in plain.state_dict().items():
        assert torch.equal(buffer, probed.state_dict()[name]), name
    assert int(probed.network[-1].num_batches_tracked) == EPOCHS * task.BATCHES  # type: ignore[arg-type]
    assert dict(one.callback_metrics) == dict(other.callback_metrics)
    assert {"loss_step", "loss_epoch", "mean", "error_epoch", "second"} <= set(one.callback_metrics)
    assert plain.collected == probed.collected
    assert plain.by_name == probed.by_name
    assert plain.samples == probed.samples == EPOCHS * task.BATCHES * task.BATCH_SIZE
    assert torch.equal(plain.total, probed.total)
    assert "log" not in vars(probed)
    assert isinstance(probed.rule, Watching)
    assert len([x for x in probed.rule.seen if x == x and x != 0]) == 2


def test_random_numbers_are_the_same_for_both_losses() -> None:
    class Seeded(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            torch.manual_seed(trainer.global_step)

    rule = Watching()
    module = Probed(rule, torch.float64, nn.Dropout(0.3))
    trainer(Seeded(), max_epochs=EPOCHS).fit(module, loader())
    model = nn.Sequential(*task.network(), nn.Dropout(0.3))
    assert_same(rule.seen, by_hand(model, task.wrapped(model), steps(), mean_losses))


def test_bf16_mixed_is_that_of_the_trainer() -> None:
    rule = Watching()
    fit = trainer(max_epochs=EPOCHS, precision="bf16-mixed")
    fit.fit(Probed(rule, torch.float32), loader(torch.float32))

    def losses_of(model: nn.Module, batches: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return mean_losses(model, batches)

    assert_same(rule.seen, expected(1, losses_of, torch.float32), 1e-4)


def test_scale_of_a_grad_scaler_is_not_that_of_the_probe() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    rule, plugin = Watching(), MixedPrecision("16-mixed", "cpu", scaler)
    module = Probed(rule, torch.float32)
    fit = trainer(max_epochs=EPOCHS, accumulate_grad_batches=2, plugins=[plugin])
    fit.fit(module, loader(torch.float32))

    def losses_of(model: nn.Module, batches: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.half, cache_enabled=False):
            return mean_losses(model, batches)

    assert_same(rule.seen, expected(2, losses_of, torch.float32), 1e-2)


@pytest.mark.usefixtures("alone_in_ddp")
def test_ddp_is_not_disturbed() -> None:
    """The module inside is called, and DDP still broadcasts buffers."""
    rule = Watching()
    ddp: Any = {"strategy": "ddp", "devices": 1, "use_distributed_sampler": False}
    fit = trainer(max_epochs=EPOCHS, accumulate_grad_batches=2, **ddp)
    seen: list[bool] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(trainer.strategy.model.require_forward_param_sync)

    fit.callbacks.append(Watch())  # type: ignore[attr-defined]
    fit.fit(Probed(rule), loader())
    assert_same(rule.seen, expected(2))
    assert calls.count(False) > 0
    assert seen == [False, True] * (len(seen) // 2)  # as without probes: not between two steps


class OneArgument(Probed):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return task.loss_of(self.network, batch)


class AnyArguments(Probed):
    def training_step(self, *arguments: Any) -> Any:
        batch, index = arguments
        assert isinstance(index, int)
        return task.loss_of(self.network, batch)


class Taking(Probed):
    """It removes its inputs from the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        targets, inputs = batch.pop(), batch.pop()
        return {"loss": task.loss_of(self.network, (inputs, targets))}


@pytest.mark.parametrize("kind", [OneArgument, AnyArguments, Taking])
def test_any_arguments_of_training_step(kind: type[Probed]) -> None:
    rule = Watching()
    trainer(max_epochs=EPOCHS).fit(kind(rule), loader())
    assert_same(rule.seen, expected())


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_batches_that_training_step_draws_by_itself_are_not_probed() -> None:
    class Drawing(Probed):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            batch, *_ = next(dataloader_iter)
            return task.loss_of(self.network, batch)

    rule = Watching()
    # Lightning logs nothing without the size of the batch there.
    fit = trainer(callbacks=[MoMoCallback(log=False)], max_epochs=EPOCHS)
    fit.fit(Drawing(rule), loader())
    assert len(rule.seen) == EPOCHS * task.BATCHES
    assert not any(value == value for value in rule.seen)


def test_manual_optimisation_hands_a_probe_on() -> None:
    class ByHand(Probed):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()

            def closure() -> Tensor:
                loss = task.loss_of(self.network, batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                return loss

            optimizer.step(closure, probe=lambda: task.loss_of(self.network, batch))

    rule = Watching()
    trainer(max_epochs=EPOCHS).fit(ByHand(rule), loader())
    assert_same(rule.seen, expected())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_probe_changes_nothing(error: type[BaseException]) -> None:
    class Failing(Probed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not torch.is_grad_enabled():
                assert not torch.equal(flat(list(self.parameters())), kept[-1])
                self.total = 1
                self.network[-1](torch.ones(3, 2, dtype=torch.float64))
                raise error("the probe")
            kept.append(flat(list(self.parameters())).detach().clone())
            return task.loss_of(self.network, batch)

    kept: list[Tensor] = []
    module = Failing(Watching(), torch.float64, nn.BatchNorm1d(2).double())
    fit = trainer(max_epochs=EPOCHS)
    raised = SystemExit if error is KeyboardInterrupt else error  # which Lightning makes of it
    with pytest.raises(raised):
        fit.fit(module, loader())
    assert len(kept) == 4
    assert torch.equal(flat(list(module.parameters())), kept[-1])
    assert int(module.network[-1].num_batches_tracked) == 4  # type: ignore[arg-type]
    assert not {"total", "log"} & set(vars(module))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or not dist.is_available(),
    reason="needs a system that can fork, and torch.distributed",
)
@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks")
def test_ranks_measure_their_own_batches_and_take_the_mean(tmp_path: Path) -> None:
    """Of two processes, each of which has every other batch."""

    class Half(Probed):
        def train_dataloader(self) -> Any:
            own = task.batches()[self.global_rank :: 2]
            return torch.utils.data.DataLoader(own, batch_size=None)  # type: ignore[arg-type]

        def on_train_end(self) -> None:
            assert isinstance(self.rule, Watching)
            torch.save(self.rule.seen, tmp_path / f"{self.global_rank}.pt")

    ddp: Any = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer(max_epochs=EPOCHS, **ddp).fit(Half())
    found = expected(2)
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), found)
