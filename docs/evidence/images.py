"""Handwritten digits (scikit-learn, 8 x 8 pixels), classified by four networks.

They are a perceptron, a convolutional network without normalisation, a residual network with it,
and a vision transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.problems import Batch, Problem, epochs

BATCH_SIZE = 64
TEST_IMAGES = 597


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images of shape [n, 1, 8, 8] to train on and to test with, then both labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(
        images, torch.tensor(labels), test_size=TEST_IMAGES, random_state=0, stratify=labels
    )
    return split[0], split[1], split[2], split[3]


def classification_of(
    data: tuple[Tensor, Tensor, Tensor, Tensor], model: nn.Module, steps: int
) -> Problem:
    """Return the problem of classifying images.

    Args:
        data: Images to train on and to test with, then both labels.
        model: Maps images to logits of shape [n, classes].
        steps: The number of steps.
    """
    train_images, test_images, train_labels, test_labels = data

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        logits = model(test_images)
        hits = (logits.argmax(dim=1) == test_labels).float()
        return {"loss": functional.cross_entropy(logits, test_labels), "score": hits.mean()}

    batches = epochs((train_images, train_labels), BATCH_SIZE, steps)
    return Problem(model, batches, steps, cross_entropy, evaluate)


def classification(model: nn.Module, steps: int) -> Problem:
    """Return the problem of classifying digits; see `classification_of`."""
    return classification_of(digits(), model, steps)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch of inputs and labels."""
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


def perceptron() -> Problem:
    layers = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return classification(nn.Sequential(*layers, nn.Linear(128, 10)), steps=300)


def convolutional() -> Problem:
    """Return the network on which SGD-M with a high cap fails: no normalisation holds it."""
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()]
    return classification(nn.Sequential(*layers, nn.Linear(512, 10)), steps=200)


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation, around which the input is passed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.main(images) + self.shortcut(images))


def residual() -> Problem:
    stem = [nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    blocks = [ResidualBlock(12, 12, stride=1), ResidualBlock(12, 24, stride=2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
    return classification(nn.Sequential(*stem, *blocks, *head), steps=150)


class VisionTransformer(nn.Module):
    """A transformer over 2 x 2 patches, whose mean is classified."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(start_dim=2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.encoder(tokens).mean(dim=1))
        return logits


def vision_transformer() -> Problem:
    return classification(VisionTransformer(), steps=180)
