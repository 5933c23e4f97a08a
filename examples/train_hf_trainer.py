"""transformers.Trainer: a small GPT-2 learns the characters of Python's own help texts.

    pip install -e . transformers accelerate
    python examples/train_hf_trainer.py

trains a randomly initialised model of two layers on the text of `pydoc_data.topics`, with a
learning rate that is ten times the usual one: it is only an upper bound. The cross-entropy per
character of text that was held out must fall below 2.8; that of guessing is 4.6, and that of
knowing how frequent each character is 3.3. It takes 15 seconds on one CPU core and downloads
nothing.
"""

from __future__ import annotations

import math
import tempfile
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.integrations.transformers import MoMoTrainer

MAX_LR = 1e-2
LOWER_BOUND = 2.0  # more than 200 steps of this model can reach
LENGTH = 64
STEPS = 200
ENOUGH = 2.8


def language_model(alphabet: int) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=alphabet, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # GPT-2 leaves it open; Trainer counts its tokens by it
    return model


def held_out_and_train() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], Tensor]:
    """Samples of text, and how often each character occurs."""
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[character] for character in text])
    samples = [{"input_ids": part, "labels": part} for part in ids.split(LENGTH)[:-1]]
    return samples[:200], samples[200:], ids.bincount().double()


def main() -> None:
    torch.set_num_threads(1)  # faster than several for so small a network
    torch.manual_seed(0)
    held_out, train, counts = held_out_and_train()
    by_frequency = float(torch.distributions.Categorical(counts).entropy())
    model = language_model(len(counts))
    adamw = torch.optim.AdamW(model.parameters(), lr=MAX_LR, weight_decay=0.0)
    optimizer = MoMoWrapper(adamw, MoMo(LOWER_BOUND))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            lr_scheduler_type="linear",
            warmup_steps=20,
            logging_steps=5,
            max_grad_norm=0.0,  # clipped gradients would hide from the model how steep the loss is
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = MoMoTrainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=held_out,
            optimizers=(optimizer, None),
        )
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    print(f"cross-entropy {loss:.3f}, of guessing {math.log(len(counts)):.3f}, ", end="")
    print(f"of the frequencies {by_frequency:.3f}")
    thetas = [row["momo/theta"] for row in trainer.state.log_history if "momo/theta" in row]
    assert min(thetas) < 1, "the learning rate was never too large"
    assert loss < ENOUGH < by_frequency


if __name__ == "__main__":
    main()
