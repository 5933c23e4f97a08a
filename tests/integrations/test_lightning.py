"""Lightning: the same steps as by hand, the logs, and runs that go on from a checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from momo_wrap import MoMoWrapper, StepRecord
from momo_wrap.optim import MoMoAdamW
from tests.integrations import task
from tests.problems import flat, last_step

pytest.importorskip("lightning", reason="Lightning is not installed")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from momo_wrap.integrations.lightning import MoMoCallback

pytestmark = [
    # Lightning's own: it looks into a tree with a deprecated function of torch,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    # and thinks that data this small deserves workers.
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
]


class Regression(pl.LightningModule):
    """The network and the optimizer of the task."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, *, schedule: bool = False, bound: float = 0.1
    ) -> None:
        super().__init__()
        self.bound = bound
        self.network = task.network(dtype)
        self.schedule = schedule
        self.records: list[StepRecord] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = task.loss_of(self.network, batch)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = task.wrapped(self.network, self.bound)
        self.records = task.watched(optimizer)
        if not self.schedule:
            return optimizer
        scheduler = {"scheduler": task.decreasing(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Shuffled(DataLoader[Any]):
    """Batches in an order that each epoch draws again, from the position of a checkpoint."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(TensorDataset(*task.data(dtype)), batch_size=task.BATCH_SIZE)
        self.epoch, self.next = 0, 0

    def __iter__(self) -> Any:
        if self.next == task.BATCHES:
            self.epoch, self.next = self.epoch + 1, 0
        order = torch.randperm(task.BATCHES, generator=torch.Generator().manual_seed(self.epoch))
        batches = list(super().__iter__())
        while self.next < task.BATCHES:
            self.next += 1
            yield batches[order[self.next - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


def trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    callbacks = (MoMoCallback(), *callbacks)
    defaults = {"accelerator": "cpu", "max_epochs": 3, "callbacks": list(callbacks)}
    return pl.Trainer(**{**quiet, **defaults, **settings})


def loader(dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*task.data(dtype)), batch_size=task.BATCH_SIZE)


def optimizer_of(module: Regression) -> MoMoWrapper:
    (optimizer,) = module.trainer.optimizers
    assert isinstance(optimizer, MoMoWrapper)
    return optimizer


@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("schedule", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_by_hand(accumulate: int, schedule: bool, clip: float | None) -> None:
    module = Regression(schedule=schedule)
    fit = trainer(accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    fit.fit(module, loader())
    params, records = task.by_hand(3, accumulate, clip, schedule=schedule)
    task.assert_same_steps(module.records, records)
    torch.testing.assert_close(flat(list(module.parameters())), params, rtol=1e-10, atol=1e-10)


def test_accumulated_loss_needs_the_callback() -> None:
    """The closure's loss is that of the last batch alone, divided by three."""
    module = Regression()
    trainer(callbacks=[], max_epochs=1, accumulate_grad_batches=3).fit(module, loader())
    _, records = task.by_hand(1, 3)
    assert len(module.records) == len(records)
    assert float(module.records[0].loss) < 0.5 * float(records[0].loss)


def test_accumulation_may_change_on_the_way() -> None:
    module = Regression()
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})
    trainer(schedule).fit(module, loader())
    first, others = module.losses[: task.BATCHES], module.losses[task.BATCHES :]
    means = [sum(others[start : start + 4]) / 4 for start in range(0, len(others), 4)]
    assert [float(record.loss) for record in module.records] == pytest.approx([*first, *means])


def test_bf16_mixed_learns() -> None:
    module = Regression(torch.float32)
    trainer(max_epochs=40, precision="bf16-mixed").fit(module, loader(torch.float32))
    losses = torch.stack([record.loss for record in module.records]).view(40, -1).mean(1)
    assert losses.dtype == torch.float32
    assert losses[-5:].mean() < 0.6 * losses[:2].mean()
    assert any(record.theta < 1 for record in module.records)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_scale_of_a_grad_scaler_is_undone(accumulate: int) -> None:
    """The scaler calls `step()` bare; its scale is a power of two and cancels."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    scaled, plain = Regression(torch.float32), Regression(torch.float32)
    fit = trainer(plugins=[plugin], accumulate_grad_batches=accumulate)
    fit.fit(scaled, loader(torch.float32))
    trainer(accumulate_grad_batches=accumulate).fit(plain, loader(torch.float32))
    assert scaler.get_scale() == 2.0**12
    assert len(scaled.records) == len(plain.records)
    for name in ("loss", "value_after_decay"):
        first, other = (torch.stack([getattr(r, name) for r in m.records]) for m in (scaled, plain))
        torch.testing.assert_close(first, other, rtol=0.1, atol=0.0)  # float16 in the forward pass


@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_of_scaled_gradients_is_recorded(accumulate: int) -> None:
    """Lightning also asks whether the optimizer unscales itself before it clips."""
    slopes = []
    for clip in (None, 0.1):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        module = Regression(torch.float32)
        fit = trainer(
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
            max_epochs=1,
        )
        fit.fit(module, loader(torch.float32))
        assert len(module.records) == -(-task.BATCHES // accumulate)
        slopes.append(float(module.records[0].predicted_decrease))
    # AdamW's first step is along the signs, for any factor of the gradients.
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-3)


def test_step_that_the_scaler_skips_leaves_no_loss_behind() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows float16 at first
    module = Regression(torch.float32)
    fit = trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_epochs=6)
    fit.fit(module, loader(torch.float32))
    taken = len(module.records)
    assert 0 < taken < 6 * task.BATCHES, "no step was skipped, or all were"
    assert {float(record.loss) for record in module.records} < set(module.losses)


def test_logs(tmp_path: Path) -> None:
    """LearningRateMonitor has the caps, the callback what became of them."""
    logger = CSVLogger(tmp_path)
    module = Regression(schedule=True)
    monitor = LearningRateMonitor(logging_interval="step")
    trainer(monitor, logger=logger, log_every_n_steps=1).fit(module, loader())
    rows: dict[int, dict[str, str]] = {}
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), {}).update({k: v for k, v in row.items() if v})
    assert len(rows) == len(module.records) == 3 * task.BATCHES
    for step, record in enumerate(module.records):
        numbers = {name: float(value) for name, value in rows[step].items()}
        assert numbers["momo/theta"] == pytest.approx(float(record.theta), rel=1e-5)
        for group, cap in (("pg1", 0.1 * 0.9**step), ("pg2", 0.3 * 0.9**step)):
            assert numbers[f"lr-MoMoWrapper/{group}"] == pytest.approx(cap)
            effective = numbers[f"momo/effective_lr/{group}"]
            assert effective == pytest.approx(float(record.theta) * cap, rel=1e-5)


def test_a_monitor_of_the_learning_rate_names_the_class(tmp_path: Path) -> None:
    """Classes that take parameters name their base."""

    class ByName(Regression):
        def configure_optimizers(self) -> Any:
            return MoMoAdamW(self.network.parameters(), lr=0.1)

    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor(logging_interval="step")
    trainer(MoMoCallback(), monitor, logger=logger, log_every_n_steps=1).fit(ByName(), loader())
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        assert "lr-MoMoAdamW" in (csv.DictReader(file).fieldnames or [])


def test_logs_only_if_asked_to() -> None:
    fit = trainer(callbacks=[MoMoCallback(log=False)])
    fit.fit(Regression(), loader())
    assert not fit.callback_metrics


# The resumed run saves where the first one did.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("accumulate", "after"), [(1, 13), (3, 4)])
def test_run_that_goes_on_from_a_checkpoint_ends_the_same(
    tmp_path: Path, accumulate: int, after: int
) -> None:
    """Bit for bit, from the middle of the second epoch."""

    def train(module: Regression, ckpt_path: str | None = None) -> None:
        settings: Any = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
        saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=after, save_top_k=-1)
        fit = trainer(saved, max_epochs=4, enable_checkpointing=True, **settings)
        fit.fit(module, Shuffled(), ckpt_path=ckpt_path)

    whole, resumed = (Regression(schedule=True, bound=0.4) for _ in range(2))
    train(whole)
    train(resumed, str(tmp_path / f"step={after}.ckpt"))
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert task.BATCHES < len(resumed.losses) < len(whole.losses) - task.BATCHES
    assert torch.equal(flat(list(resumed.parameters())), flat(list(whole.parameters())))
    assert last_step(optimizer_of(resumed)) == last_step(optimizer_of(whole))
    assert any(record.theta < 1 for record in resumed.records)


def test_manual_optimisation_takes_a_closure() -> None:
    class ByHand(Regression):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)

            def closure() -> Tensor:
                loss = task.loss_of(self.network, batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

    module = ByHand()
    trainer().fit(module, loader())
    task.assert_same_steps(module.records, task.by_hand()[1])


def test_parameters_can_be_added_through_lightning() -> None:
    """Lightning's own optimizer passes for a MoMoWrapper, and hands everything on."""
    module = Regression()
    trainer(max_epochs=1).fit(module, loader())
    optimizer = module.optimizers()
    assert isinstance(optimizer, MoMoWrapper)
    optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    assert len(optimizer_of(module).param_groups) == 3


def test_without_a_wrapper_there_is_nothing_to_record() -> None:
    class Bare(Regression):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TypeError, match=r"Give the trainer MoMoWrapper\(optimizer\)"):
        trainer().fit(Bare(), loader())


class InHand(Regression):
    """Manual optimisation with a step that is called as a test says."""

    automatic_optimization = False

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.take = step

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = task.loss_of(self.network, batch)
        self.manual_backward(loss)
        self.take(optimizer, loss)


def test_manual_optimisation_with_recorded_losses() -> None:
    def step(optimizer: Any, loss: Tensor) -> None:
        optimizer.record_loss(loss)
        optimizer.step()

    module = InHand(step)
    trainer().fit(module, loader())
    task.assert_same_steps(module.records, task.by_hand()[1])


@pytest.mark.parametrize(
    "step",
    [lambda optimizer, _: optimizer.step(), lambda optimizer, loss: optimizer.step(loss=loss)],
    ids=["bare", "with a loss"],
)
def test_errors_of_manual_optimisation_lead_to_record_loss(step: Any) -> None:
    """Lightning always passes its own closure."""
    with pytest.raises(
        TypeError, match=r"manual optimization,? write optimizer.record_loss\(loss\)"
    ):
        trainer().fit(InHand(step), loader())


class Skipping(Regression):
    """Leaves out every fourth batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx % 4 == 3 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("callbacks", [[MoMoCallback()], []], ids=["callback", "without"])
def test_a_batch_that_is_left_out_takes_no_step(
    callbacks: list[pl.Callback], clip: float | None
) -> None:
    module = Skipping()
    # Without the callback the clipping is not recorded.
    fit = trainer(callbacks=callbacks, gradient_clip_val=clip if callbacks else None)
    fit.fit(module, loader())
    model = task.network()
    optimizer = task.wrapped(model)
    optimizer.max_grad_norm = clip if callbacks else None
    records = task.watched(optimizer)
    for _ in range(3):
        for index, batch in enumerate(task.batches()):
            if index % 4 != 3:
                optimizer.zero_grad()
                loss = task.loss_of(model, batch)
                loss.backward()
                optimizer.step(loss=loss)
    taken = [record for number, record in enumerate(module.records) if number % 4 != 3]
    task.assert_same_steps(taken, records)
    torch.testing.assert_close(
        flat(list(module.parameters())), flat(list(model.parameters())), rtol=1e-10, atol=1e-10
    )


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_is_left_out_of_several_does_not_count() -> None:
    """The others of its step are divided as if it were there; their losses make the mean."""
    module = Skipping()
    trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, loader())
    losses = torch.tensor(module.losses, dtype=torch.float64).view(2, 3).mean(1)
    torch.testing.assert_close(torch.stack([r.loss for r in module.records]), losses)


def test_older_name_of_lightning() -> None:
    older = pytest.importorskip("pytorch_lightning")

    class Older(older.LightningModule):  # type: ignore[misc, name-defined]
        network = task.network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return task.loss_of(self.network, batch)

        def configure_optimizers(self) -> MoMoWrapper:
            optimizer = task.wrapped(self.network)
            self.records = task.watched(optimizer)
            return optimizer

    module = Older()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fit = older.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=3,
        callbacks=[MoMoCallback()],
        enable_checkpointing=False,
        **quiet,
    )
    fit.fit(module, loader())
    task.assert_same_steps(module.records, task.by_hand(3, 3)[1])
    assert "momo/theta" in fit.callback_metrics
