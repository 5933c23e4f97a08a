"""sentence-transformers: its Trainer as it is, and made a MoMoTrainer."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from momo_wrap import MoMo, MoMoWrapper, StepRecord
from momo_wrap.integrations import losses_from_backward
from momo_wrap.optim import TrustedAdamW
from tests.integrations import task
from tests.problems import flat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("datasets", reason="its Trainer takes a dataset of datasets")
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.modules import BoW, Dense

    from momo_wrap.integrations.transformers import MoMoTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the packages


class MoMoSentenceTrainer(MoMoTrainer, SentenceTransformerTrainer):  # type: ignore[misc]
    """The recipe of the docs."""


def trainer(kind: Any, folder: Path, accumulate: int = 1, **settings: Any) -> Any:
    """Pairs of sentences about the same number, on a bag of words and a dense layer."""
    torch.manual_seed(0)
    words = [f"w{index}" for index in range(12)]
    model = SentenceTransformer(modules=[BoW(words), Dense(12, 8)], device="cpu")
    pairs = {
        "sentence1": [f"w{index % 6}" for index in range(32)],
        "sentence2": [f"w{(index + index % 4) % 6 + 6}" for index in range(32)],
        "score": [float(index % 4 == 0) for index in range(32)],
    }
    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=3,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return kind(model, arguments, train_dataset=Dataset.from_dict(pairs), **settings)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_both_ways_are_the_same(tmp_path: Path, accumulate: int) -> None:
    found: list[tuple[Tensor, list[StepRecord]]] = []
    for kind in (SentenceTransformerTrainer, MoMoSentenceTrainer):
        made = trainer(kind, tmp_path, accumulate)
        params = list(made.model.parameters())
        optimizer = MoMoWrapper(torch.optim.AdamW(params, lr=0.3), MoMo(0.2))
        made.optimizer, records = optimizer, task.watched(optimizer)
        plain = kind is SentenceTransformerTrainer
        with losses_from_backward(optimizer) if plain else nullcontext():
            made.train()
        found.append((flat(params), records))
    (params_of_one, records), (params_of_other, expected) = found
    task.assert_same_steps(records, expected, 1e-5)
    torch.testing.assert_close(params_of_one, params_of_other, rtol=1e-4, atol=1e-5)
    assert expected[-1].loss < 0.5 * expected[0].loss


def test_a_class(tmp_path: Path) -> None:
    made = trainer(MoMoSentenceTrainer, tmp_path, optimizer_cls_and_kwargs=(TrustedAdamW, {}))
    made.train()
    rows = [row for row in made.state.log_history if "train_loss" in row]
    assert type(made.optimizer.optimizer) is TrustedAdamW
    assert rows[0]["train_loss"] > 0
