"""New features to judge rules on: of masked digits, by a margin, of few parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import flat_digits
from docs.evidence.problems import Batch, epochs

PATCHES, PIXELS = 16, 4


class Masked(nn.Module):
    """A transformer over patches of an image, of which some are replaced by a learned token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(PIXELS, width)
        self.missing = nn.Parameter(0.1 * torch.randn(width))
        self.positions = nn.Parameter(torch.randn(PATCHES, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, PIXELS)

    def forward(self, patches: Tensor, hidden: Tensor) -> Tensor:
        tokens = torch.where(hidden[..., None], self.missing, self.patches(patches))
        outputs: Tensor = self.head(self.encoder(tokens + self.positions))
        return outputs


def masked_digits() -> Situation:
    """A transformer that fills in half of an image; judged on new images and masks."""

    def patches(images: Tensor) -> Tensor:
        return images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, PATCHES, PIXELS)

    def hidden(count: int, generator: torch.Generator | None = None) -> Tensor:
        order = torch.rand(count, PATCHES, generator=generator).argsort(dim=1)
        return order < 8

    train, test = (patches(images) for images in flat_digits()[:2])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        errors = (model(*batch) - batch[0]).square()[batch[1]]
        total: Tensor = errors.mean()
        return total

    def batches() -> Iterator[Batch]:
        for (images,) in epochs((train,), 32, 500):
            yield images, hidden(len(images))

    held_out = test, hidden(len(test), torch.Generator().manual_seed(221))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": loss(model, held_out)}

    return Situation(Masked(32), batches(), 500, [loss], evaluate)


def triplets() -> Situation:
    """Triplets with a margin, among 24 classes in loud noise; in late batches the loss is near 0.

    Judged by the nearest mean of a class.
    """
    generator = torch.Generator().manual_seed(222)
    classes, signal, loud = 24, 6, 26
    centres = 2.0 * torch.randn(classes, signal, generator=generator)
    mixing = torch.linalg.qr(torch.randn(signal + loud, signal + loud, generator=generator))[0]

    def drawn(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        own = centres[labels] + 0.5 * torch.randn(len(labels), signal, generator=generator)
        noise = 2.0 * torch.randn(len(labels), loud, generator=generator)
        points: Tensor = torch.cat([own, noise], dim=1) @ mixing
        return points

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        anchor, same, other = (functional.normalize(model(x), dim=1) for x in batch)
        missing: Tensor = functional.triplet_margin_loss(anchor, same, other, margin=0.3)
        return missing

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            labels = torch.randint(classes, (48,))
            others = (labels + torch.randint(1, classes, (48,))) % classes
            yield drawn(labels), drawn(labels), drawn(others)

    labels = torch.arange(3600) % classes
    points = drawn(labels, generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        features = functional.normalize(model(points), dim=1)
        own, other = features.split([1200, 2400])
        means = functional.normalize(own.view(-1, classes, own.shape[1]).mean(dim=0), dim=1)
        hits = (other @ means.T).argmax(dim=1) == labels[1200:]
        return {"score": hits.float().mean()}

    model = perceptron(signal + loud, 64, 16)
    return Situation(model, batches(), 500, [loss], evaluate)


class Dictionary(nn.Module):
    """Codes that are not below 0, and a dictionary whose entries have norm 1."""

    def __init__(self, inputs: int, codes: int) -> None:
        super().__init__()
        self.encoder = perceptron(inputs, codes)
        self.entries = nn.Parameter(torch.randn(codes, inputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.relu(self.encoder(x))
        return codes, codes @ functional.normalize(self.entries, dim=1)


def sparse_codes() -> Situation:
    """A sparse autoencoder with more codes than inputs; judged by how well true ones are found."""
    true = torch.randn(40, 24, generator=torch.Generator().manual_seed(223))
    true = functional.normalize(true, dim=1)

    def batches() -> Iterator[Batch]:
        for _ in range(800):
            strengths = (torch.rand(128, 40) < 0.06) * (0.5 + torch.rand(128, 40))
            yield (strengths @ true + 0.02 * torch.randn(128, 24),)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        codes, made = model(batch[0])
        missing = (made - batch[0]).square().sum(dim=1)
        total: Tensor = (missing + 0.2 * codes.sum(dim=1)).mean()
        return total

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(model, Dictionary)
        likeness = true @ functional.normalize(model.entries, dim=1).T
        return {"score": likeness.max(dim=1).values.mean()}

    return Situation(Dictionary(24, 64), batches(), 800, [loss], evaluate)
