"""A small diffusion model of handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from docs.evidence.images import digits
from docs.evidence.problems import Batch, Problem, epochs

BATCH_SIZE, STEPS = 128, 400
FREQUENCIES = 8


class Denoiser(nn.Module):
    """Tells the noise from a noisy image of 64 pixels and the time, from 0 to 1."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 2 * FREQUENCIES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64),
        )

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        angles = times[:, None] * torch.pi * 2 ** torch.linspace(0, 4, FREQUENCIES)
        noise: Tensor = self.layers(torch.cat([images, angles.sin(), angles.cos()], dim=1))
        return noise


def noisy(images: Tensor, times: Tensor, noise: Tensor) -> Batch:
    """Return images that noise was added to, the times, and the noise.

    The share of the image in the variance is cos²(π t/2), the cosine schedule of Nichol and
    Dhariwal, arXiv 2102.09672, without its offset.

    Args:
        images: Shape [n, 64], from -1 to 1.
        times: Shape [n], from 0 (the image) to 1 (noise alone).
        noise: Shape [n, 64].
    """
    angles = times[:, None] * math.pi / 2
    return angles.cos() * images + angles.sin() * noise, times, noise


def noise_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean squared error of the noise."""
    images, times, noise = batch
    loss: Tensor = (model(images, times) - noise).square().mean()
    return loss


def diffusion() -> Problem:
    train_images, test_images = (2 * x.flatten(start_dim=1) - 1 for x in digits()[:2])

    def batches() -> Iterator[Batch]:
        for (images,) in epochs((train_images,), BATCH_SIZE, STEPS):
            yield noisy(images, torch.rand(len(images)), torch.randn_like(images))

    generator = torch.Generator().manual_seed(0)
    tests = test_images.repeat(4, 1)
    times = torch.rand(len(tests), generator=generator)
    test = noisy(tests, times, torch.randn(tests.shape, generator=generator))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": noise_loss(model, test)}

    return Problem(Denoiser(), batches(), STEPS, noise_loss, evaluate)
