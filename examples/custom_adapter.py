"""Write a reading adapter: AdaBelief of pytorch-optimizer, an optimizer that has none.

    pip install -e ".[examples]"
    python examples/custom_adapter.py

checks the adapter below against the laws that any adapter satisfies, and registers it. Then it
trains a small network on scikit-learn's handwritten digits with AdaBelief, bare and wrapped in one
line, at learning rates from 1e-4 to 1e2, and prints the test accuracies. Bare AdaBelief collapses
at learning rates from 1 on; wherever it does, the wrapped one must reach 0.9. It takes ten seconds
on one CPU core and downloads nothing. docs/write_an_adapter.md walks through the adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_optimizer import AdaBelief
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer

from momo_wrap import Averaging, MoMoWrapper, ReadingAdapter, register_adapter
from momo_wrap.adapters import Block, ParamGroup, Reading, State
from momo_wrap.testing import check_adapter

Scalars = Mapping[str, float | Tensor]

LEARNING_RATES = [10.0**exponent for exponent in range(-4, 3)]
EPOCHS = 10
BATCH_SIZE = 64
SEED = 0
COLLAPSED, TRAINED = 0.5, 0.9  # test accuracies; that of guessing is 0.1

# Between them, every number in the adapter and both implementations of the base count.
CHECKED_SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.02},
    {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3},
    {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3, "foreach": False},
]


class AdaBeliefAdapter(ReadingAdapter):
    """AdaBelief of pytorch-optimizer: D_k = sqrt(s_k / (1 - β2^k)) + ε, d_k = B_k / (1 - β1^k).

    B_k is `exp_avg` and s_k `exp_avg_var`. k counts the steps of the parameter group.
    """

    variants = ("rectify", "ams_bound", "adanorm", "adam_debias", "fixed_decay")

    def obstacle(self, base: Optimizer) -> str | None:
        for group in base.param_groups:
            for option in self.variants:
                if group.get(option):
                    return f"with {option}=True it takes another step"
        return None

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        beta1 = group["betas"][0]
        return Averaging(decay=beta1, weight=1.0 - beta1, bias_corrected=True)

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        beta1, beta2 = group["betas"]
        return Reading(
            buffer=[state[p]["exp_avg"] for p in params],
            tensors={"variance": [state[p]["exp_avg_var"] for p in params]},
            scalars={"beta1": beta1, "beta2": beta2, "step": group["step"], "eps": group["eps"]},
        )

    def scalars(self, read: Scalars) -> Scalars:
        first, second = (1.0 - read[beta] ** read["step"] for beta in ("beta1", "beta2"))
        return {"buffer_scale": 1.0 / first, "correction": second, "eps": read["eps"]}

    def preconditioned(self, block: Block) -> Tensor:
        root = (block.flat("variance") / block.scalar("correction")).sqrt()
        return torch.div(self.grad_avg(block), root + block.scalar("eps"))


def check() -> None:
    for settings in CHECKED_SETTINGS:
        laws = check_adapter(partial(AdaBelief, **settings), AdaBeliefAdapter())
        shown = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(f"With {shown} the laws hold: {', '.join(laws)}")
    print()


class Digits(NamedTuple):
    train_pixels: Tensor
    test_pixels: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load_data() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    arrays = (torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    return Digits(*train_test_split(*arrays, test_size=360, stratify=labels, random_state=0))


def minibatches(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(data.train_labels)).split(BATCH_SIZE):
            yield data.train_pixels[batch], data.train_labels[batch]


def train(lr: float, data: Digits, seed: int, *, wrap: bool) -> float:
    """Return the test accuracy after training."""
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    network = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer: Optimizer = AdaBelief(network.parameters(), lr=lr)
    if wrap:
        optimizer = MoMoWrapper(optimizer)
    for pixels, labels in minibatches(data):
        loss = nn.functional.cross_entropy(network(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, MoMoWrapper):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
    predictions = network(data.test_pixels).argmax(dim=1)
    return float((predictions == data.test_labels).float().mean())


def compare(seed: int) -> None:
    """Print the test accuracies, and assert that the wrapper saves the runs that collapse."""
    data = load_data()
    collapsed = []
    print(f"Test accuracy\n\n{'lr':>8}{'AdaBelief':>12}{'with MoMo':>12}")
    for lr in LEARNING_RATES:
        bare, wrapped = (train(lr, data, seed, wrap=wrap) for wrap in (False, True))
        print(f"{lr:>8.3g}{bare:>12.3f}{wrapped:>12.3f}")
        if bare < COLLAPSED:
            assert wrapped > TRAINED, f"at lr={lr:.3g}: {wrapped:.3f} wrapped"
            collapsed.append(lr)
    assert {1.0, 10.0, 100.0} <= set(collapsed), f"bare AdaBelief collapsed at {collapsed} only"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about = "of network and minibatches (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=SEED, help=about)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)  # faster than several for so small a network
    check()
    register_adapter(AdaBelief, AdaBeliefAdapter())
    compare(seed)


if __name__ == "__main__":
    main()
