"""Handwritten digits in situations that are hard: clipping, noise in labels, no labels at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.images import cross_entropy, digits
from docs.evidence.problems import Batch, epochs


def flat_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, test, train_labels, test_labels = digits()
    return train.flatten(1), test.flatten(1), train_labels, test_labels


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    return {"score": (model(images).argmax(dim=1) == labels).float().mean()}


def convolutions(*, norm: bool = False) -> nn.Sequential:
    """Return two convolutions and a linear layer."""
    norms = [nn.BatchNorm2d(16), nn.BatchNorm2d(32)] if norm else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        norms[0],
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        norms[1],
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def _classification(
    model: nn.Module, steps: int, batch_size: int, *, clip: float = float("inf"), noise: float = 0.0
) -> Situation:
    train, test, labels, test_labels = flat_digits()
    if noise:
        generator = torch.Generator().manual_seed(4)
        wrong = torch.rand(len(labels), generator=generator) < noise
        drawn = torch.randint(10, (len(labels),), generator=generator)
        labels = torch.where(wrong, drawn, labels)
    batches = epochs((train, labels), batch_size, steps)
    return Situation(
        model,
        batches,
        steps,
        [cross_entropy],
        lambda model: accuracy(model, test, test_labels),
        clip=clip,
    )


def clipped_perceptron() -> Situation:
    """Gradients clipped to a norm of 0.1."""
    return _classification(perceptron(64, 64, 64, 10), 400, 64, clip=0.1)


def clipped_convolutions() -> Situation:
    """Gradients clipped to a norm of 0.03."""
    return _classification(convolutions(), 300, 32, clip=0.03)


def noisy_labels_perceptron() -> Situation:
    """Half of the labels are random."""
    return _classification(perceptron(64, 64, 64, 10), 400, 64, noise=0.5)


def noisy_labels_convolutions() -> Situation:
    """Six of ten labels are random, with normalisation."""
    return _classification(convolutions(norm=True), 300, 64, noise=0.6)


def dropout() -> Situation:
    """Dropout of 0.2 and 0.5."""
    layers = list(perceptron(64, 128, 128, 10))
    layers = [
        nn.Dropout(0.2),
        *layers[:2],
        nn.Dropout(0.5),
        *layers[2:4],
        nn.Dropout(0.5),
        layers[4],
    ]
    return _classification(nn.Sequential(*layers), 500, 32)


def single_examples() -> Situation:
    """Batches of one example."""
    return _classification(perceptron(64, 64, 10), 1200, 1)


def normalised() -> Situation:
    """Batch normalisation with batches of 16."""
    return _classification(convolutions(norm=True), 300, 16)


class Autoencoder(nn.Module):
    """A variational autoencoder of 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = perceptron(64, 64, 16), perceptron(8, 64, 64)


def variational() -> Situation:
    """A variational autoencoder."""
    train, test, *_ = flat_digits()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Autoencoder)
        images, noise = batch
        mean, log_variance = model.encoder(images).chunk(2, dim=1)
        logits = model.decoder(mean + (log_variance / 2).exp() * noise)
        kept = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        total: Tensor = (kept + divergence) / len(images)
        return total

    def batches() -> Iterator[Batch]:
        for (images,) in epochs((train,), 64, 500):
            yield images, torch.randn(len(images), 8)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        noise = torch.randn(len(test), 8, generator=torch.Generator().manual_seed(5))
        return {"loss": loss(model, (test, noise))}

    return Situation(Autoencoder(), batches(), 500, [loss], evaluate)


def contrastive() -> Situation:
    """InfoNCE between two noisy views of an image; judged by its loss."""
    train, test, *_ = flat_digits()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        one, other = (functional.normalize(model(view), dim=1) for view in batch)
        return functional.cross_entropy(10.0 * one @ other.T, torch.arange(len(one)))

    def views(images: Tensor, generator: torch.Generator | None = None) -> Batch:
        shape = (2, *images.shape)
        noisy = images + 0.3 * torch.randn(shape, generator=generator)
        kept = torch.rand(shape, generator=generator) > 0.3
        return tuple((noisy * kept).unbind())

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(6)
        return {"loss": loss(model, views(test[:512], generator))}

    batches = (views(images) for (images,) in epochs((train,), 128, 400))
    return Situation(perceptron(64, 128, 32), batches, 400, [loss], evaluate)


class Distillation(nn.Module):
    """A student, and a teacher that is the moving average of the student."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.student = perceptron(*widths)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(widths[-1]))


def _distillation(model: Distillation, steps: int, momentum: float, sharpness: float) -> Situation:
    train, test, labels, test_labels = flat_digits()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Distillation)
        targets = torch.softmax(sharpness * (batch[1] - model.centre), dim=1)
        return functional.cross_entropy(10.0 * model.student(batch[0]), targets)

    def batches() -> Iterator[Batch]:
        for (images,) in epochs((train,), 64, steps):
            one, other = images + 0.3 * torch.randn(2, *images.shape)
            with torch.no_grad():
                outputs = model.teacher(other)
                model.centre.lerp_(outputs.mean(dim=0), 0.1)
            yield one, outputs

    def follow(model: nn.Module) -> None:
        assert isinstance(model, Distillation)
        with torch.no_grad():
            for own, new in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                own.lerp_(new, 1 - momentum)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(model, Distillation)
        own, other = (functional.normalize(model.student[:-1](x), dim=1) for x in (train, test))
        gram = own.T @ own + 0.1 * torch.eye(own.shape[1])
        weights = torch.linalg.solve(gram, own.T @ functional.one_hot(labels).float())
        return {"score": ((other @ weights).argmax(dim=1) == test_labels).float().mean()}

    return Situation(
        model, batches(), steps, [loss], evaluate, players=[model.student], after_step=follow
    )


def distillation() -> Situation:
    """A student that learns from its own moving average; judged by its features."""
    return _distillation(Distillation(64, 64, 32, 32), 400, 0.99, 25.0)


def slow_distillation() -> Situation:
    """The same with a slower teacher, a wider net and sharper targets."""
    return _distillation(Distillation(64, 128, 48, 64), 300, 0.996, 40.0)
