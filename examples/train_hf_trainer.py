"""transformers.Trainer: a small GPT-2 learns the characters of Python's own help texts.

    pip install -e . transformers accelerate
    python examples/train_hf_trainer.py

trains a model of two layers from scratch in half a minute on one CPU core. The learning rate, ten
times the usual one, is only an upper bound. The cross-entropy per character of text that was held
out falls below 2.8; that of guessing is 4.6, of knowing how frequent each character is 3.3.
"""

import tempfile
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.integrations.transformers import MoMoTrainer

LENGTH = 64

torch.manual_seed(0)
text = "".join(topics[name] for name in sorted(topics))
alphabet = sorted(set(text))
ids = torch.tensor([alphabet.index(character) for character in text])
samples = [{"input_ids": part, "labels": part} for part in ids.split(LENGTH)[:-1]]

config = GPT2Config(
    vocab_size=len(alphabet),
    n_positions=LENGTH,
    n_embd=64,
    n_layer=2,
    n_head=4,
    bos_token_id=0,
    eos_token_id=0,
)
model = GPT2LMHeadModel(config)
model.loss_type = "ForCausalLM"  # GPT-2 leaves it open; Trainer counts its tokens by it
adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
optimizer = MoMoWrapper(adamw, MoMo(lower_bound=2.0))  # more than so few steps can reach

folder = tempfile.TemporaryDirectory()
arguments = TrainingArguments(
    folder.name,
    max_steps=200,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    lr_scheduler_type="linear",
    warmup_steps=20,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = MoMoTrainer(
    model,
    arguments,
    train_dataset=samples[200:],
    eval_dataset=samples[:200],
    optimizers=(optimizer, None),
)
trainer.train()
loss = trainer.evaluate()["eval_loss"]
print(f"cross-entropy {loss:.3f}")
assert loss < 2.8
