"""Distillation without a learning rate: the teacher's loss of each batch is the lower bound.

A student that learns what a teacher says has the teacher's own loss as the least that its loss can
be, another one for each batch. With that as the bound, any learning rate that is large enough does.

    python examples/distillation.py

takes half a minute, and writes docs/results/distillation.csv.
"""

import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from momo_wrap import MoMo, MoMoWrapper

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "distillation.csv"
TEMPERATURE, BATCH = 3.0, 64
EPOCHS, SEEDS = 8, range(3)
METHODS = ("AdamW", "MoMo, bound 0", "MoMo, teacher's loss")
LRS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def batches(epochs: int) -> list[Tensor]:
    return [rows for _ in range(epochs) for rows in torch.randperm(1400).split(BATCH)]


def taught(inputs: Tensor, labels: Tensor) -> nn.Module:
    """Return a teacher, trained with the labels."""
    torch.manual_seed(0)
    model = network(128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for rows in batches(10):
        optimizer.zero_grad()
        cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return model


def distilled(inputs: Tensor, teacher: nn.Module, lr: float, seed: int, method: str) -> float:
    """Return the test loss beyond the teacher's own, after training a student."""
    with torch.no_grad():
        says = (teacher(inputs) / TEMPERATURE).log_softmax(1)
    own = -(says.exp() * says).sum(1)  # the teacher's loss of each row: what none falls below
    torch.manual_seed(seed)
    student = network(32)
    bare = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    momo = None if method == "AdamW" else MoMoWrapper(bare, MoMo())
    for rows in batches(EPOCHS):
        bare.zero_grad()
        loss = cross_entropy(student(inputs[rows]) / TEMPERATURE, says[rows].exp())
        loss.backward()
        if momo is None:
            bare.step()
        else:
            bound = own[rows].mean() if method == "MoMo, teacher's loss" else None
            momo.step(loss=loss, lower_bound=bound)
    with torch.no_grad():
        test = cross_entropy(student(inputs[1400:]) / TEMPERATURE, says[1400:].exp())
    return float(test - own[1400:].mean())


def data() -> tuple[Tensor, Tensor]:
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(digits)[order]


def table(rows: dict[str, list[float]]) -> str:
    """Return the results as Markdown."""
    lines = [f"| lr | {' | '.join(rows)} |", "|--:|" + "--:|" * len(rows)]
    for lr, *found in zip(LRS, *rows.values(), strict=True):
        lines.append(f"| {lr:g} | " + " | ".join(f"{value:.4f}" for value in found) + " |")
    return "\n".join(lines) + "\n"


def results(path: Path) -> dict[str, list[float]]:
    """Return, of each method, what is in a file, in the order of `LRS`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {method: [float(row[method]) for row in rows] for method in METHODS}


if __name__ == "__main__":
    torch.set_num_threads(1)
    inputs, labels = data()
    teacher = taught(inputs[:1400], labels[:1400])
    means = {
        method: [
            sum(distilled(inputs, teacher, lr, seed, method) for seed in SEEDS) / len(SEEDS)
            for lr in LRS
        ]
        for method in METHODS
    }
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", *METHODS])
        writer.writerows(zip(LRS, *means.values(), strict=True))
    print(table(means))
    # No learning rate to choose, against the best of seven, and against no bound but 0.
    tuned, zero, bounded = (means[method] for method in METHODS)
    assert max(bounded[-4:]) < 2 * min(tuned)
    assert zero[-1] > 100 * bounded[-1]
