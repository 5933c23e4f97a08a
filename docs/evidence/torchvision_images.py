"""MNIST and CIFAR-10, for those who have torchvision and the data: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from docs.evidence.images import ResidualBlock, classification_of
from docs.evidence.problems import Problem

STEPS = 400


def found(root: Path) -> dict[str, Callable[[], Problem]]:
    """Return the tasks whose data is in a folder, by name.

    Args:
        root: Where torchvision has put its datasets.
    """
    tasks = {
        "MNIST, conv net": partial(mnist, root),
        "CIFAR-10, ResNet": partial(cifar, root),
    }
    names = {"MNIST, conv net": "MNIST", "CIFAR-10, ResNet": "CIFAR10"}
    return {task: make for task, make in tasks.items() if _is_there(names[task], root)}


def _is_there(name: str, root: Path) -> bool:
    try:
        _dataset(name, root, train=False)
    except (ImportError, RuntimeError):  # no torchvision; no data
        return False
    return True


def _dataset(name: str, root: Path, *, train: bool) -> Any:
    datasets = importlib.import_module("torchvision.datasets")
    return getattr(datasets, name)(root, train=train, download=False)


@cache
def images(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images of shape [n, channels, height, width] to train on and to test with, and labels.

    Args:
        name: The class in torchvision.datasets.
        root: Where its data is.
    """
    tensors: list[Tensor] = []
    for train in (True, False):
        dataset = _dataset(name, root, train=train)
        pixels = torch.as_tensor(dataset.data)
        # CIFAR has its channels last, MNIST none.
        pixels = pixels.permute(0, 3, 1, 2) if pixels.dim() == 4 else pixels.unsqueeze(1)
        tensors += [pixels.float() / 255, torch.as_tensor(dataset.targets)]
    return tensors[0], tensors[2], tensors[1], tensors[3]


def mnist(root: Path) -> Problem:
    layers = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 10))
    return classification_of(images("MNIST", root), model, STEPS)


def cifar(root: Path) -> Problem:
    stem = [nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [ResidualBlock(16, 32, stride=2), ResidualBlock(32, 64, stride=2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return classification_of(images("CIFAR10", root), nn.Sequential(*stem, *blocks, *head), STEPS)
