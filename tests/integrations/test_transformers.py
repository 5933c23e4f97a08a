"""transformers.Trainer: the same steps as by hand, and runs that go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from momo_wrap import MoMo, MoMoWrapper, StepRecord
from momo_wrap.integrations import losses_from_backward, wrapper_of
from momo_wrap.optim import TrustedAdamW
from tests.integrations import task
from tests.problems import flat, last_step

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers trains with accelerate")

from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from momo_wrap.integrations.transformers import MoMoTrainer
from tests.integrations.language import (
    BATCH_SIZE,
    Batch,
    Batches,
    Bigram,
    batch_mean,
    by_hand,
    language_model,
    sequences,
    token_mean,
    wrapped,
)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **{**defaults, **settings})


def trainer(
    folder: Path,
    model: nn.Module,
    *,
    scheduler: Callable[[MoMoWrapper], LRScheduler] | None = None,
    kind: type[Trainer] = MoMoTrainer,
    **settings: Any,
) -> tuple[Trainer, list[StepRecord]]:
    optimizer = wrapped(model)
    made = kind(
        model,
        arguments(folder, **settings),
        train_dataset=sequences(),
        data_collator=Batches(),
        optimizers=(optimizer, None if scheduler is None else scheduler(optimizer)),  # type: ignore[arg-type]
    )
    return made, task.watched(optimizer)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("make", "losses_of"),
    [(language_model, token_mean), (Bigram, batch_mean)],
    ids=["num_items_in_batch", "number_of_batches"],
)
def test_steps_are_those_by_hand(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    losses_of: Callable[[nn.Module, list[Batch]], list[Tensor]],
    accumulate: int,
) -> None:
    """With clipping and a scheduler; the last step of an epoch has fewer batches."""
    model, same = make(), make()
    made, records = trainer(
        tmp_path,
        model,
        scheduler=task.decreasing,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.5,
    )
    made.train()
    assert isinstance(made.data_collator, Batches)
    seen = made.data_collator.seen
    expected = by_hand(same, seen, accumulate, losses_of, clip=0.5, scheduler=task.decreasing)
    task.assert_same_steps(records, expected, tolerance=1e-3)
    params, other = flat(list(model.parameters())), flat(list(same.parameters()))
    torch.testing.assert_close(params, other, rtol=1e-2, atol=2e-3)


def test_language_model_learns_and_logs(tmp_path: Path) -> None:
    """Without a scheduler of its own, with that of the arguments; and an evaluation in between."""
    made, records = trainer(
        tmp_path, language_model(), gradient_accumulation_steps=2, num_train_epochs=4
    )
    before = made.evaluate(sequences()[:8])  # type: ignore[arg-type]
    made.train()
    after = made.evaluate(sequences()[:8])  # type: ignore[arg-type]
    *rows, _, last = made.state.log_history
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert not any(name.startswith("momo/") for name in (*before, *last))
    assert len(rows) == len(records) == 4 * 6
    for row, record in zip(rows, records, strict=True):
        assert row["loss"] == pytest.approx(float(record.loss), abs=1e-4)
        assert row["momo/theta"] == float(record.theta)
        assert row["momo/effective_lr"] == pytest.approx(row["learning_rate"] * float(record.theta))
    caps = [row["learning_rate"] for row in rows]
    assert caps == sorted(caps, reverse=True)
    assert caps[0] > 10 * caps[-1]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_run_that_goes_on_from_a_checkpoint_ends_the_same(tmp_path: Path, accumulate: int) -> None:
    """Bit for bit, from the middle of an epoch, with dropout and data in random order."""
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 5,
        "gradient_accumulation_steps": accumulate,
        "scheduler": task.decreasing,
    }
    model = language_model(dropout=0.1)
    whole, records = trainer(tmp_path, model, **settings)
    whole.train()
    same = language_model(dropout=0.1)
    resumed, later = trainer(tmp_path, same, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert len(later) == len(records) - 5
    assert later == records[5:]
    assert any(0 < record.theta < 1 for record in later)
    assert torch.equal(flat(list(same.parameters())), flat(list(model.parameters())))


def test_loss_of_a_skipped_step_is_forgotten(tmp_path: Path) -> None:
    """Trainer resets the gradients by `model.zero_grad()`, which the optimizer does not see."""

    class LeavesALoss(TrainerCallback):
        def on_step_end(self, *_: Any, **objects: Any) -> None:
            objects["optimizer"].optimizer.record_loss(1e6)  # as a scaler that did not call step()

    made, records = trainer(tmp_path, language_model(), gradient_accumulation_steps=3)
    made.add_callback(LeavesALoss())
    made.train()
    assert max(float(record.loss) for record in records) < 5


@pytest.mark.slow
def test_bf16_learns(tmp_path: Path) -> None:
    made, records = trainer(tmp_path, language_model(), bf16=True)
    made.train()
    assert records[0].loss.dtype == torch.float32
    assert float(records[-1].loss) < 0.7 * float(records[0].loss)
    assert any(0 < record.theta < 1 for record in records)


def test_plain_trainer_error_names_the_class_to_use(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, language_model(), kind=Trainer)
    with pytest.raises(TypeError, match="record_loss"):
        made.train()


def test_bare_optimizer_raises(tmp_path: Path) -> None:
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters())
    made = MoMoTrainer(
        model,
        arguments(tmp_path),
        train_dataset=sequences(),
        optimizers=(optimizer, None),
    )
    with pytest.raises(TypeError, match="Give the trainer MoMoWrapper"):
        made.train()


def test_other_trainers_become_one(tmp_path: Path) -> None:
    """By inheritance from both; both of their `training_step` run."""
    calls: list[float] = []

    class Counting(Trainer):
        def training_step(self, *args: Any) -> Tensor:
            calls.append(float(loss := super().training_step(*args)))
            return loss

    class Both(MoMoTrainer, Counting):
        pass

    made, records = trainer(tmp_path, language_model(), kind=Both, num_train_epochs=1)
    made.train()
    assert calls == [float(record.loss) for record in records]


def test_optimizer_may_be_made_by_the_trainer(tmp_path: Path) -> None:
    class Making(MoMoTrainer):
        def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
            self.optimizer = MoMoWrapper(super().create_optimizer(model), MoMo(1.5))
            return self.optimizer

    model = language_model()
    settings = arguments(
        tmp_path, learning_rate=0.1, weight_decay=0.01, lr_scheduler_type="constant"
    )
    made = Making(model, settings, train_dataset=sequences())
    made.train()
    wrapper = wrapper_of(made.optimizer)
    assert 0 < float(last_step(wrapper).loss) < 1.7
    assert [group["lr"] for group in wrapper.param_groups] == [0.1, 0.1]
    row = made.state.log_history[0]
    assert 0 < row["momo/theta"] < 1
    for group in ("pg1", "pg2"):
        assert row[f"momo/effective_lr/{group}"] == pytest.approx(0.1 * row["momo/theta"])


@pytest.mark.parametrize("clip", [0.0, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("make", [language_model, Bigram])
def test_a_plain_trainer_with_losses_from_backward(
    tmp_path: Path, make: Callable[[], nn.Module], accumulate: int, clip: float
) -> None:
    """Bit for bit as MoMoTrainer; the loss is the sum of the losses that Trainer divided."""
    found = []
    for kind in (Trainer, MoMoTrainer):
        model = make()
        settings: Any = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
        made, records = trainer(tmp_path, model, kind=kind, **settings)
        plain = losses_from_backward(made.optimizer) if kind is Trainer else nullcontext()
        with plain:
            made.train()
        found.append((flat(list(model.parameters())), records))
    (params, records), (same, expected) = found
    task.assert_same_steps(records, expected, 0.0)
    assert torch.equal(params, same)


def test_plain_trainer_error_names_the_line_to_write(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, Bigram(), kind=Trainer)
    with pytest.raises(TypeError, match="transformers calls it: use MoMoTrainer of"):
        made.train()


@pytest.mark.parametrize("kind", [Trainer, MoMoTrainer])
def test_a_class_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, kind: type[Trainer]) -> None:
    def made(model: nn.Module) -> Trainer:
        chosen: Any = (TrustedAdamW, {"lower_bound": 0.1})
        return kind(
            model,
            arguments(tmp_path, save_strategy="steps", save_steps=13),
            train_dataset=sequences(),
            optimizer_cls_and_kwargs=chosen,
        )

    def train(one: Trainer, checkpoint: str | None = None) -> None:
        one.create_optimizer()
        assert type(one.optimizer) is TrustedAdamW
        plain = losses_from_backward(one.optimizer) if kind is Trainer else nullcontext()
        with plain:
            one.train(resume_from_checkpoint=checkpoint)

    whole, resumed = language_model(), language_model()
    first, second = made(whole), made(resumed)
    train(first)
    train(second, str(tmp_path / "checkpoint-13"))
    assert torch.equal(flat(list(whole.parameters())), flat(list(resumed.parameters())))
    assert last_step(wrapper_of(first.optimizer)) == last_step(wrapper_of(second.optimizer))
