"""transformers.Trainer: a rule that wants probes gets them, and nothing else is left of them."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import ModelStats, MoMo, StepRule
from tests.integrations.probing import EVERY, Losses, Watching, assert_same, by_hand
from tests.problems import flat

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers trains with accelerate")

from transformers import Trainer, TrainerCallback

from momo_wrap.integrations.transformers import MoMoTrainer
from tests.integrations.language import (
    BATCH_SIZE,
    PAD,
    SAMPLES,
    Batches,
    Bigram,
    batch_mean,
    language_model,
    sequences,
    token_mean,
    wrapped,
)
from tests.integrations.test_transformers import arguments

EPOCHS = 2
IN_FLOAT32 = 1e-3  # of differences of losses near 1, which transformers computes in float32
PER_EPOCH = SAMPLES // BATCH_SIZE
calls: list[bool] = []  # of the models, whether gradients were recorded


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def trainer(
    folder: Path, model: nn.Module, rule: StepRule, kind: type[Trainer] = MoMoTrainer, **more: Any
) -> Trainer:
    optimizer = wrapped(model)
    optimizer.rule = rule
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    settings = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "num_train_epochs": EPOCHS}
    return kind(
        model,
        arguments(folder, **{**settings, **more}),
        train_dataset=sequences(),
        data_collator=Batches(),
        optimizers=(optimizer, None),
    )


def expected(made: Trainer, model: nn.Module, accumulate: int, losses_of: Losses) -> list[float]:
    """By hand, on the batches that the Trainer saw."""
    assert isinstance(made.data_collator, Batches)
    seen, steps = made.data_collator.seen, []
    for epoch in range(0, len(seen), PER_EPOCH):
        of_epoch = seen[epoch : epoch + PER_EPOCH]
        steps += [of_epoch[i : i + accumulate] for i in range(0, PER_EPOCH, accumulate)]
    return by_hand(model.train(), wrapped(model), steps, losses_of)


def bound(model: nn.Module) -> float:
    return float(wrapped(model).rule.lower_bound)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("make", "losses_of", "tolerance"),
    [(language_model, token_mean, IN_FLOAT32), (Bigram, batch_mean, 1e-9)],
    ids=["num_items_in_batch", "number_of_batches"],
)
def test_it_is_the_difference_of_the_losses_of_all_batches_of_the_step(
    tmp_path: Path, make: Any, losses_of: Losses, tolerance: float, accumulate: int
) -> None:
    """The last step of an epoch has fewer batches."""
    model, same = make().double(), make().double()
    rule = Watching(bound(model))
    made = trainer(tmp_path, model, rule, gradient_accumulation_steps=accumulate)
    made.train()
    assert_same(rule.seen, expected(made, same, accumulate, losses_of), tolerance)
    assert calls.count(True) == EPOCHS * PER_EPOCH
    sizes = EPOCHS * [min(accumulate, PER_EPOCH - i) for i in range(0, PER_EPOCH, accumulate)]
    assert calls.count(False) == sum(sizes[EVERY::EVERY]) > 0


def test_a_rule_that_wants_none_costs_nothing(tmp_path: Path) -> None:
    model = Bigram()
    trainer(tmp_path, model, MoMo(bound(model)), gradient_accumulation_steps=2).train()
    assert calls == [True] * EPOCHS * PER_EPOCH


@pytest.mark.parametrize("due", [False, True])
def test_batches_are_let_go(tmp_path: Path, due: bool) -> None:
    """At once where nothing is to be probed, else with the step. Trainer holds its own."""

    class Always(Watching):
        def wants_probe(self, stats: ModelStats) -> bool:
            return due

    class Given(MoMoTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Tensor:
            ids = inputs["input_ids"].clone()
            batches.append(weakref.ref(ids))
            return super().training_step(model, {**inputs, "input_ids": ids}, *args)

    class Alive(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            gc.collect()
            alive.append(sum(batch() is not None for batch in batches))

    batches: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    made = trainer(tmp_path, Bigram(), Always(), Given, gradient_accumulation_steps=4)
    made.add_callback(Alive())
    made.train()
    # The first step has no step before that could be probed; the last of an epoch has 3 batches.
    assert alive == [0, 0, 0, *[due * n for n in (1, 2, 3, 1, 2, 1, 2, 3, 1, 2, 3, 1, 2)]]


class Talkative(Trainer):
    """It logs and counts in its loss, and takes labels out of the inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = 0
        self.sums: dict[str, list[float]] = {"loss": []}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        loss: Any = super().compute_loss(model, {**inputs, "labels": labels}, *args, **kwargs)
        self.batches += 1
        self.sums["loss"].append(loss.item())
        self.log({"of_batch": loss.item()})
        return loss

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Tensor:
        labels = inputs.pop("labels")
        return super().training_step(model, {**inputs, "labels": labels}, *args)


class Both(MoMoTrainer, Talkative):
    pass


class Normed(Bigram):
    """With statistics and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(input_ids, labels)
        noise = self.drop(self.norm(input_ids.float())).mean()
        return {"loss": outputs["loss"] + 0.1 * noise**2}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_nothing_is_left_of_a_probe(tmp_path: Path) -> None:
    """Parameters, statistics, logs, attributes and random numbers, bit for bit."""
    found = []
    for rule in (MoMo(0.5), Watching(0.5)):
        model = Normed()
        made = trainer(tmp_path, model, rule, Both, gradient_accumulation_steps=2)
        made.train()
        found.append((made, model, torch.rand(2)))
    assert calls.count(False) > 0
    (one, plain, number), (other, probed, same) = found
    assert isinstance(one, Both)
    assert isinstance(other, Both)
    assert torch.equal(number, same)
    assert torch.equal(flat(list(plain.parameters())), flat(list(probed.parameters())))
    for name, buffer in plain.state_dict().items():
        assert torch.equal(buffer, probed.state_dict()[name]), name
    assert one.batches == other.batches == EPOCHS * PER_EPOCH
    assert one.sums == other.sums
    logs = [
        [
            {k: v for k, v in row.items() if not k.startswith("train_")}
            for row in t.state.log_history
        ]
        for t in (one, other)
    ]
    assert logs[0] == logs[1]
    assert len([row for row in logs[0] if "of_batch" in row]) == EPOCHS * PER_EPOCH
    assert not {"log", "backward"} & {*vars(other), *vars(other.accelerator)}


def test_label_smoothing_is_that_of_the_trainer(tmp_path: Path) -> None:
    def losses_of(model: nn.Module, batches: Any) -> list[Tensor]:
        (batch,) = batches
        logits, labels = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
        smoothed = partial(nn.functional.cross_entropy, ignore_index=PAD, label_smoothing=0.3)
        return [smoothed(logits.flatten(0, 1), labels.flatten())]

    model, same, rule = language_model().double(), language_model().double(), Watching(1.5)
    made = trainer(tmp_path, model, rule, label_smoothing_factor=0.3)
    made.train()
    assert_same(rule.seen, expected(made, same, 1, losses_of), IN_FLOAT32)


@pytest.mark.usefixtures("alone_in_ddp")
def test_ddp_is_not_disturbed(tmp_path: Path) -> None:
    """The module inside is called, and DDP still broadcasts buffers."""

    class Watch(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            wrapped_in_ddp: Any = made.model_wrapped
            seen.append(wrapped_in_ddp.require_forward_param_sync)

        on_step_end = on_substep_end

    seen: list[bool] = []
    model, same, rule = Bigram().double(), Bigram().double(), Watching(0.5)
    made = trainer(tmp_path, model, rule, gradient_accumulation_steps=2)
    made.add_callback(Watch())
    made.train()
    assert_same(rule.seen, expected(made, same, 2, batch_mean), 1e-9)
    assert calls.count(False) > 0
    assert seen == [True] * EPOCHS * PER_EPOCH  # as without probes, in a single process


def test_bf16_is_that_of_the_trainer(tmp_path: Path) -> None:
    """The model computes in bfloat16 there too."""
    model, kinds = Bigram(), []

    def note(*arguments: Any) -> None:
        kinds.append((torch.is_grad_enabled(), arguments[-1].dtype))

    model.logits.register_forward_hook(note)
    rule = Watching(0.5)
    trainer(tmp_path, model, rule, bf16=True, gradient_accumulation_steps=2).train()
    assert set(kinds) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert any(value == value for value in rule.seen)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_probe_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    class Failing(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            if not torch.is_grad_enabled():
                assert not torch.equal(flat(list(model.parameters())), kept[-1])
                raise error("the probe")
            kept.append(flat(list(model.parameters())).detach().clone())
            return loss

    class Mixed(MoMoTrainer, Failing):
        pass

    kept: list[Tensor] = []
    model = Normed()
    made = trainer(tmp_path, model, Watching(0.5), Mixed)
    with pytest.raises(error, match="the probe"):
        made.train()
    assert len(kept) == EVERY + 1
    assert torch.equal(flat(list(model.parameters())), kept[-1])
    assert int(model.norm.num_batches_tracked) == EVERY + 1  # type: ignore[arg-type]
    assert not {"log", "backward"} & {*vars(made), *vars(made.accelerator)}
