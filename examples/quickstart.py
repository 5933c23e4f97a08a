"""Quickstart: train with and without MoMoWrapper at learning rates from 1e-4 to 1e2.

    pip install -e ".[examples]"
    python examples/quickstart.py

trains a small convolutional network on handwritten digits with SGD-M and AdamW, bare, with MoMo and
with TrustedMoMo. It prints the test accuracies, draws them, and ends with a verdict in one line. It
takes less than a minute on two CPU cores, and downloads nothing. The result depends on the seed,
above all for MoMo: docs/quickstart/seeds.py compares twelve, of which the default is typical.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRule, TrustedMoMo, sweep

LEARNING_RATES = [10 ** (exponent / 2) for exponent in range(-8, 5)]
EPOCHS = 10
SEED = 1
TASK = "handwritten digits"
BASES = ("SGD-M", "AdamW")
MARGIN = 0.02  # of test accuracy: this near the best is near enough


def sgd_m(params: Any, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, dampening=0.9)


def adamw(params: Any, lr: float) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr)


def wrapped(
    params: Any, lr: float, base: sweep.OptimizerFactory, rule: type[StepRule]
) -> Optimizer:
    return MoMoWrapper(base(params, lr), rule())


OPTIMIZERS: dict[str, sweep.OptimizerFactory] = {
    "SGD-M": sgd_m,
    "SGD-M + MoMo": partial(wrapped, base=sgd_m, rule=MoMo),
    "SGD-M + TrustedMoMo": partial(wrapped, base=sgd_m, rule=TrustedMoMo),
    "AdamW": adamw,
    "AdamW + MoMo": partial(wrapped, base=adamw, rule=MoMo),
    "AdamW + TrustedMoMo": partial(wrapped, base=adamw, rule=TrustedMoMo),
}


@cache
def data() -> list[Tensor]:
    """Return images to train on and to test with, then the labels of both."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    arrays = (images, torch.tensor(labels))
    split: list[Tensor] = train_test_split(*arrays, test_size=360, stratify=labels, random_state=0)
    return split


def train(
    lr: float, make_optimizer: sweep.OptimizerFactory, seed: int, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Return the test accuracy after training, which is 0.1 by guessing."""
    torch.manual_seed(seed)
    images, test_images, labels, test_labels = data()
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)),
    )
    optimizer = make_optimizer(network.parameters(), lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]  # bare and wrapped alike
    predictions = network(test_images).argmax(dim=1)
    return {"score": (predictions == test_labels).float().mean()}


def of_base(results: Any, base: str) -> Any:
    """Return the results of an optimizer, bare and wrapped."""
    return results[results["optimizer"].str.startswith(base)]


def widths(results: Any, base: str) -> dict[str, float]:
    """Return over how many decades of lr each comes near the best, 0 for one lr only."""
    tolerances = sweep.tolerance(of_base(results, base), MARGIN)
    return dict(zip(tolerances["optimizer"], tolerances["decades"], strict=True))


def verdict(results: Any) -> str:
    """Return in one line over how many decades of lr each optimizer trains well."""
    parts = []
    for base in BASES:
        names = (base, f"{base} + MoMo", f"{base} + TrustedMoMo")
        found = [widths(results, base)[name] for name in names]
        bare, momo, trusted = (f"{width:.1f}" if width >= 0 else "none" for width in found)
        parts.append(f"{base} {bare}, with MoMo {momo}, with TrustedMoMo {trusted}")
    return f"Decades of lr within {MARGIN} of the best accuracy: {'; '.join(parts)}."


def plot(results: Any, prefix: str) -> None:
    """Draw a picture for each base: the accuracies over the learning rate."""
    for base in BASES:
        path = f"{prefix}_{base.lower()}.png"
        own = of_base(results, base)
        sweep.plot_scores(own, path, margin=MARGIN, label="test accuracy")
        print(f"{path} shows the accuracies of {base}.")


def check_claim(results: Any) -> None:
    """Assert that the largest lr ruins what is bare, and that TrustedMoMo trains well with it."""
    scores = results[results["lr"] == max(LEARNING_RATES)].set_index("optimizer")["score"]
    for base in BASES:
        bare, trusted = scores[base], scores[f"{base} + TrustedMoMo"]
        assert bare < 0.5 < 0.9 < trusted, f"{base} at the largest lr: {bare:.3f}, {trusted:.3f}"
        widest = widths(results, base)
        assert widest[f"{base} + TrustedMoMo"] > widest[base], widest


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    rates = "default: 1e-4 to 1e2, two per decade"
    add("--learning-rates", type=float, nargs="+", default=LEARNING_RATES, metavar="LR", help=rates)
    add("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    add("--seed", type=int, default=SEED, help="default: %(default)s")
    pictures = "how the names of the pictures begin (default: %(default)s)"
    add("--output", default="momo_quickstart", help=pictures)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    task = {TASK: partial(train, epochs=arguments.epochs)}
    rates, seeds = arguments.learning_rates, [arguments.seed]
    with TemporaryDirectory() as folder:
        results = sweep.run(task, OPTIMIZERS, rates, seeds, Path(folder) / "quickstart.csv")
    accuracies = results.pivot_table("score", "lr", "optimizer")[list(OPTIMIZERS)]
    print(accuracies.to_string(float_format="{:.3f}".format))
    plot(results, arguments.output)
    print(verdict(results))
    if rates == LEARNING_RATES and arguments.epochs == EPOCHS:
        check_claim(results)


if __name__ == "__main__":
    main()
