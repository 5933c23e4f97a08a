"""A learning rate sweep of your own: a train function, optimizers by name, one call.

    python examples/lr_sweep.py

trains a small network on scikit-learn's digits with AdamW and SGD-M, bare and wrapped, at 7
learning rates and 2 seeds, in parallel. It prints over how many decades of lr each optimizer comes
within two points of the best accuracy, draws the accuracies and the step sizes, and writes a
report to look at in a browser. It takes a minute on two CPU cores. Stop it when you like: started
again, it goes on where it was. Started twice, the two share the work.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim import Optimizer

from momo_wrap import MoMoWrapper, Recorder, sweep

LEARNING_RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0]
SEEDS = [0, 1]
EPOCHS = 30
MARGIN = 0.02  # of accuracy
GUESSING = 0.1  # accuracy


def sgd_m(params: Any, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, dampening=0.9)


def adamw(params: Any, lr: float) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr)


def sgd_m_with_momo(params: Any, lr: float) -> Optimizer:
    return MoMoWrapper(sgd_m(params, lr))


def adamw_with_momo(params: Any, lr: float) -> Optimizer:
    return MoMoWrapper(adamw(params, lr))


OPTIMIZERS: dict[str, sweep.OptimizerFactory] = {
    "SGD-M": sgd_m,
    "SGD-M + MoMo": sgd_m_with_momo,
    "AdamW": adamw,
    "AdamW + MoMo": adamw_with_momo,
}


def digits(
    lr: float, make_optimizer: sweep.OptimizerFactory, seed: int, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Train on digits, and return the accuracy on what was held out."""
    torch.manual_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels / 16, dtype=torch.float32)
    data = train_test_split(inputs, torch.tensor(labels), test_size=360, random_state=0)
    train_inputs, test_inputs, train_labels, test_labels = data

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = make_optimizer(model.parameters(), lr)
    recorder = Recorder(optimizer) if isinstance(optimizer, MoMoWrapper) else None
    for _ in range(epochs):
        for batch in torch.randperm(len(train_labels)).split(64):
            loss = nn.functional.cross_entropy(model(train_inputs[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]  # bare and wrapped alike
            if recorder is not None:
                recorder.record()

    predictions = model(test_inputs).argmax(dim=1)
    result = {"score": (predictions == test_labels).float().mean(), "loss": loss}
    return result if recorder is None else {**result, "curve": recorder.curve()}


def check_claim(tolerances: Any) -> None:
    """Assert that wrapping does not narrow the learning rates that AdamW bears."""
    decades = tolerances.set_index("optimizer")["decades"]
    bare, wrapped = decades["AdamW"], decades["AdamW + MoMo"]
    assert wrapped >= bare, f"AdamW: {bare:.1f} decades bare, {wrapped:.1f} wrapped"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("lr_sweep"), help="a folder")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output: Path = arguments.output
    results = sweep.run(
        {"digits": partial(digits, epochs=arguments.epochs)},
        OPTIMIZERS,
        LEARNING_RATES,
        SEEDS,
        output / "results.csv",
        settings={"epochs": arguments.epochs},
    )
    tolerances = sweep.tolerance(results, MARGIN)
    print(tolerances.drop(columns=["task", "threshold"]).to_string(index=False))
    sweep.plot_scores(results, output / "scores.png", margin=MARGIN, label="test accuracy")
    sweep.plot_losses(results, output / "losses.png", label="last training loss")
    curves = sweep.load_curves(output / "results.csv", optimizer="AdamW + MoMo", seed=0)
    sweep.plot_step_sizes(curves, output / "step_sizes.png")
    sweep.report(results, output / "report.html", MARGIN, worst=GUESSING, curves=curves)
    print(f"Figures and results are in {output}; look at report.html.")
    if arguments.epochs == EPOCHS:
        check_claim(tolerances)


if __name__ == "__main__":
    main()
