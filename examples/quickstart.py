"""Quickstart: the same training runs with and without MoMoWrapper, over six decades of lr.

    python examples/quickstart.py

trains a small convolutional network on scikit-learn's handwritten digits with SGD-M and AdamW,
bare and wrapped, with MoMo's rule and with TrustedMoMo, at 13 learning rates. It prints the test
accuracies and over how many decades of lr each method stays within two points of the best one, and
saves the curves. It takes three minutes on one CPU core, less on several, and downloads nothing.
The widths depend on the seed, most for SGD-M + MoMo: the default is a typical one of the twelve
that docs/quickstart/seeds.py compares.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRule, TrustedMoMo, sweep

LEARNING_RATES = [10 ** (exponent / 2) for exponent in range(-8, 5)]
EPOCHS = 20
SEED = 7
BATCH_SIZE = 64
MARGIN = 0.02  # of test accuracy, below the best of all methods and learning rates


def sgd_m(params: Any, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, dampening=0.9)


def adamw(params: Any, lr: float) -> Optimizer:
    # Without weight decay: lr multiplies it, and here lr is to change the size of steps only.
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.0)


def wrapped(
    params: Any, lr: float, base: sweep.OptimizerFactory, rule: Callable[[], StepRule]
) -> Optimizer:
    return MoMoWrapper(base(params, lr), rule())


METHODS: dict[str, sweep.OptimizerFactory] = {
    "SGD-M": sgd_m,
    "SGD-M + MoMo": partial(wrapped, base=sgd_m, rule=MoMo),
    "SGD-M + TrustedMoMo": partial(wrapped, base=sgd_m, rule=TrustedMoMo),
    "AdamW": adamw,
    "AdamW + MoMo": partial(wrapped, base=adamw, rule=MoMo),
    "AdamW + TrustedMoMo": partial(wrapped, base=adamw, rule=TrustedMoMo),
}
BASES = ("SGD-M", "AdamW")
RULES = ("MoMo", "TrustedMoMo")
# From Okabe and Ito's palette: TrustedMoMo, MoMo, bare. The bare curve is thin,
# hollow and on top, so that all show where they coincide.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o", "markersize": 10},
    {"color": "#E69F00", "linestyle": "-", "marker": "D", "markersize": 6},
    {"color": "black", "linestyle": "--", "marker": "s", "markersize": 4, "mfc": "white"},
)


class Digits(NamedTuple):
    train_images: Tensor
    test_images: Tensor
    train_labels: Tensor
    test_labels: Tensor


class Sweep(NamedTuple):
    """Test accuracies of each method, one per learning rate in ascending order."""

    learning_rates: list[float]
    accuracies: dict[str, list[float]]

    def threshold(self) -> float:
        return max(map(max, self.accuracies.values())) - MARGIN

    def tolerated(self, method: str) -> list[float]:
        """Return the widest contiguous run of learning rates that reach the threshold."""
        widest: list[float] = []
        run: list[float] = []
        for lr, accuracy in zip(self.learning_rates, self.accuracies[method], strict=True):
            run = [*run, lr] if accuracy >= self.threshold() else []
            widest = max(widest, run, key=decades)
        return widest


def decades(learning_rates: Sequence[float]) -> float:
    """Return the width on a log10 scale: 0 for a single one, -inf for none."""
    return math.log10(learning_rates[-1] / learning_rates[0]) if learning_rates else -math.inf


def describe(learning_rates: Sequence[float]) -> str:
    if not learning_rates:
        return "never"
    lowest, highest = learning_rates[0], learning_rates[-1]
    return f"{decades(learning_rates):.1f} decades, {lowest:.3g} to {highest:.3g}"


@cache
def load_data() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    arrays = (images, torch.tensor(labels))
    return Digits(*train_test_split(*arrays, test_size=360, stratify=labels, random_state=0))


def build_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1))
    head = (nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10))
    return nn.Sequential(*convolutions, *head)


def minibatches(data: Digits, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        for batch in torch.split(order, BATCH_SIZE):
            yield data.train_images[batch], data.train_labels[batch]


def train(
    lr: float, make_optimizer: sweep.OptimizerFactory, seed: int, epochs: int
) -> dict[str, Any]:
    """Return the test accuracy after training; about 0.1, that of guessing, if it diverged."""
    data, network = load_data(), build_network(seed)
    optimizer = make_optimizer(network.parameters(), lr)
    for images, labels in minibatches(data, epochs, seed):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, MoMoWrapper):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
    predictions = network(data.test_images).argmax(dim=1)
    return {"score": (predictions == data.test_labels).float().mean()}


def run_sweep(learning_rates: Sequence[float], epochs: int, seed: int) -> Sweep:
    task = {"digits": partial(train, epochs=epochs)}
    with TemporaryDirectory() as folder:
        found = sweep.run(task, METHODS, learning_rates, [seed], Path(folder) / "quickstart.csv")
    by_method = found.pivot_table("score", "lr", "optimizer")
    accuracies = {method: by_method[method].tolist() for method in METHODS}
    return Sweep(sorted(learning_rates), accuracies)


def print_results(found: Sweep) -> None:
    print(f"\nTest accuracy (*: within {MARGIN} of the best)\n")
    print(f"{'lr':>8}" + "".join(f"{method:>21}" for method in METHODS))
    for lr, *row in zip(found.learning_rates, *found.accuracies.values(), strict=True):
        cells = (f"{value:>20.3f}{'*' if value >= found.threshold() else ' '}" for value in row)
        print(f"{lr:>8.3g}" + "".join(cells))
    print(f"\nTolerance: the learning rates within {MARGIN} of the best accuracy\n")
    for method in METHODS:
        print(f"  {method:<21}{describe(found.tolerated(method))}")


def save(found: Sweep, path: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "learning_rate", "test_accuracy"])
        for method, accuracies in found.accuracies.items():
            for lr, accuracy in zip(found.learning_rates, accuracies, strict=True):
                writer.writerow([method, f"{lr:.6g}", f"{accuracy:.4f}"])


def plot(found: Sweep, path: str) -> None:
    figure = Figure(figsize=(11, 5.5), dpi=150, layout="constrained")
    figure.suptitle("Learning rates that come within 2 points of the best accuracy")
    panels = figure.subplots(ncols=2, sharey=True)
    for axes, base in zip(panels, BASES, strict=True):
        band = (found.threshold(), found.threshold() + MARGIN)
        axes.axhspan(*band, color="0.85", label="within 2 points of the best")
        methods = [f"{base} + TrustedMoMo", f"{base} + MoMo", base]
        for method, style in zip(methods, STYLES, strict=True):
            label = f"{method}: {describe(found.tolerated(method))}"
            axes.plot(found.learning_rates, found.accuracies[method], label=label, **style)
        axes.set_title(base)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="learning rate (wrapped: upper bound)")
        # below the axes, where it covers no curve whatever the seed
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), reverse=True)
    panels[0].set_ylabel("test accuracy")
    figure.savefig(path)


def check_claim(found: Sweep) -> None:
    """Assert that wrapping does not narrow the learning rates, and saves from the largest."""
    for base, rule in product(BASES, RULES):
        bare, wrapped = found.tolerated(base), found.tolerated(f"{base} + {rule}")
        message = f"{base} + {rule}: {describe(wrapped)}, less than bare: {describe(bare)}"
        assert decades(wrapped) >= decades(bare), message
    for base in BASES:
        bare_accuracy, trusted = (found.accuracies[m][-1] for m in (base, f"{base} + TrustedMoMo"))
        message = f"{base} at the largest lr: {bare_accuracy:.3f} bare, {trusted:.3f} wrapped"
        assert bare_accuracy < 0.5 < 0.9 < trusted, message


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    rates = "default: 1e-4 to 1e2, two per decade"
    add("--learning-rates", type=float, nargs="+", default=LEARNING_RATES, metavar="LR", help=rates)
    add("--epochs", type=int, default=EPOCHS, help="of each run (default: %(default)s)")
    add("--seed", type=int, default=SEED, help="of network and minibatches (default: %(default)s)")
    add("--csv", help="also write the accuracies there")
    add("--output", default="momo_quickstart.png", help="the picture (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    found = run_sweep(arguments.learning_rates, arguments.epochs, arguments.seed)
    print_results(found)
    if arguments.csv:
        save(found, arguments.csv)
    plot(found, arguments.output)
    print(f"\nThe curves are in {arguments.output}.")
    if found.learning_rates == LEARNING_RATES and arguments.epochs == EPOCHS:
        check_claim(found)


if __name__ == "__main__":
    main()
