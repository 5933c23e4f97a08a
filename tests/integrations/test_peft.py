"""peft: adapters of a frozen model, by hand and with a Trainer, saved and loaded."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.integrations import losses_from_backward
from momo_wrap.optim import TrustedAdamW
from tests.integrations import task
from tests.problems import flat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("peft", reason="peft is not installed")
    from peft import LoraConfig, PeftModel, get_peft_model

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft says to others


def adapted() -> Any:
    from tests.integrations.language import language_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return get_peft_model(language_model(), config)


def frozen(model: Any) -> torch.Tensor:
    return flat([param for param in model.parameters() if not param.requires_grad]).clone()


def test_adapters_by_hand(tmp_path: Path) -> None:
    """All parameters are given to the optimizer, and those of the adapters move."""
    from tests.integrations.language import language_model, sequences

    model: Any = adapted()
    before = frozen(model)
    optimizer = TrustedAdamW(model.parameters())
    batch = {name: torch.stack([row[name] for row in sequences()[:8]]) for name in sequences()[0]}
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(before, frozen(model))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(language_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_with_a_trainer(tmp_path: Path, accumulate: int) -> None:
    pytest.importorskip("accelerate", reason="transformers trains with accelerate")
    from transformers import Trainer, TrainingArguments

    from momo_wrap.integrations.transformers import MoMoTrainer
    from tests.integrations.language import BATCH_SIZE, sequences

    found = []
    for kind in (Trainer, MoMoTrainer):
        model = adapted()
        before = frozen(model)
        params = [param for param in model.parameters() if param.requires_grad]
        optimizer = MoMoWrapper(torch.optim.AdamW(params, lr=1.0), MoMo(2.0))
        records = task.watched(optimizer)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=accumulate,
            num_train_epochs=2,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        chosen: Any = (optimizer, None)
        made = kind(model, arguments, train_dataset=sequences(), optimizers=chosen)
        with losses_from_backward(optimizer) if kind is Trainer else nullcontext():
            made.train()
        assert torch.equal(before, frozen(model))
        found.append((flat(params), records))
    (params_of_one, records), (params_of_other, expected) = found
    task.assert_same_steps(records, expected, 1e-4)
    torch.testing.assert_close(params_of_one, params_of_other, rtol=1e-2, atol=1e-3)
