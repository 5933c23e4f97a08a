"""Models and data for `transformers.Trainer`, and the loop by hand that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import GPT2Config, GPT2LMHeadModel

from momo_wrap import MoMo, MoMoWrapper, StepRecord
from tests.integrations import task

Batch = dict[str, Tensor]
VOCABULARY, LENGTH, SAMPLES, BATCH_SIZE = 11, 12, 44, 4  # 11 batches: the last step has two of 3
PAD = -100


def sequences() -> list[Batch]:
    """Counting from somewhere, modulo 11; of different length, and padded."""
    samples = []
    for index in range(SAMPLES):
        ids = (torch.arange(LENGTH) + index) % VOCABULARY
        labels = ids.clone()
        labels[LENGTH - index % 7 :] = PAD
        samples.append({"input_ids": ids, "labels": labels})
    return samples


def language_model(dropout: float = 0.0) -> GPT2LMHeadModel:
    drop: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": LENGTH,
        "n_embd": 32,
        "n_layer": 2,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_head=2, bos_token_id=0, eos_token_id=0, **drop))
    model.loss_type = "ForCausalLM"  # as later models have it; the count leaves out first tokens
    return model


class Bigram(nn.Module):
    """A model that knows nothing of `num_items_in_batch`, and none of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Linear(2 * VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        one_hot = nn.functional.one_hot(input_ids, VOCABULARY).to(self.logits.weight)
        last_two = torch.cat([one_hot[:, :-2], one_hot[:, 1:-1]], dim=-1)
        logits = self.logits(last_two).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[:, 2:].flatten(), ignore_index=PAD)
        return {"loss": loss}


def wrapped(model: nn.Module) -> MoMoWrapper:
    """An optimizer whose cap is too large and whose bound is reached, so that it needs the loss."""
    lr, bound = (0.5, 0.5) if isinstance(model, Bigram) else (0.1, 1.5)
    return MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=lr), MoMo(bound))


class Batches:
    """Collates, and keeps the batches, in the order of training."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def __call__(self, samples: list[Batch]) -> Batch:
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        self.seen.append(batch)
        return batch


def token_mean(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The losses of batches, each over the tokens of all; the labels are the next tokens."""
    labels = [batch["labels"][:, 1:] for batch in batches]
    count = sum(int((label != PAD).sum()) for label in labels)
    logits = [model(batch["input_ids"]).logits[:, :-1] for batch in batches]
    pairs = zip(logits, labels, strict=True)
    sums = [
        nn.functional.cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=PAD, reduction="sum")
        for x, y in pairs
    ]
    return [total / count for total in sums]


def batch_mean(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The losses of batches, each over the number of batches."""
    return [model(**batch)["loss"] / len(batches) for batch in batches]


def by_hand(
    model: nn.Module,
    seen: list[Batch],
    accumulate: int,
    losses_of: Callable[[nn.Module, list[Batch]], list[Tensor]],
    *,
    clip: float = 1.0,
    scheduler: Callable[[MoMoWrapper], LRScheduler],
) -> list[StepRecord]:
    """Train on the batches that the Trainer saw."""
    optimizer = wrapped(model)
    optimizer.max_grad_norm = clip
    records, schedule = task.watched(optimizer), scheduler(optimizer)
    model.train()
    per_epoch = SAMPLES // BATCH_SIZE
    for epoch in range(0, len(seen), per_epoch):
        for start in range(epoch, epoch + per_epoch, accumulate):
            optimizer.zero_grad()
            losses = losses_of(model, seen[start : min(start + accumulate, epoch + per_epoch)])
            for loss in losses:
                loss.backward()
            optimizer.step(loss=torch.stack(losses).detach().sum())
            schedule.step()
    return records
