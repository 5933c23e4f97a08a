"""Special cases of Adam."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.optim import Adam, NAdam

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.adapters.adam import AdamAdapter, bias_correction
from tests.problems import relative_distance, thetas, trajectory


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.999999])
def test_bias_correction(beta: float) -> None:
    steps = torch.tensor([1.0, 2.0, 10.0, 12345.0])
    exact = [float(1 - Fraction(beta) ** int(k)) for k in steps.tolist()]
    torch.testing.assert_close(
        bias_correction(beta, steps), torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=0.0
    )
    tensor_beta = torch.tensor([beta], dtype=torch.float64)
    torch.testing.assert_close(bias_correction(tensor_beta, steps), bias_correction(beta, steps))


def test_tensor_betas() -> None:
    """Torch takes betas as tensors too; they are averaged with and never compared."""
    betas = (torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.99, dtype=torch.float64))
    tensors = trajectory(
        lambda p: MoMoWrapper(Adam(p, lr=0.3, betas=betas, foreach=False), MoMo(0.2)), 20
    )
    numbers = trajectory(lambda p: MoMoWrapper(Adam(p, lr=0.3, betas=(0.9, 0.99)), MoMo(0.2)), 20)
    assert relative_distance(tensors, numbers) < 1e-12


def test_zero_beta1_is_rmsprop_like() -> None:
    def bare(p: list[torch.Tensor]) -> Adam:
        return Adam(p, lr=0.01, betas=(0.0, 0.9))

    wrapped = trajectory(lambda p: MoMoWrapper(bare(p), MoMo(-math.inf)), 20)
    assert relative_distance(wrapped, trajectory(bare, 20)) < 1e-12


def test_nadam_with_zero_beta1() -> None:
    """Its buffer has no part in the direction then."""

    def bare(p: list[torch.Tensor]) -> NAdam:
        return NAdam(p, lr=0.01, betas=(0.0, 0.9))

    wrapped = trajectory(lambda p: MoMoWrapper(bare(p), MoMo(-math.inf)), 20)
    assert relative_distance(wrapped, trajectory(bare, 20)) < 1e-12
    assert (
        thetas(lambda p: MoMoWrapper(NAdam(p, lr=1.0, betas=(0.0, 0.9)), MoMo(1.0)), 20).min() < 1
    )
    idle = torch.ones(2, requires_grad=True)
    MoMoWrapper(NAdam([idle], betas=(0.0, 0.9))).step(loss=1.0)


def test_capturable_updates_with_foreach() -> None:
    """The single-tensor capturable form divides 0 by 0 at learning rate 0."""
    adapter = AdamAdapter()
    assert adapter.while_updating({"capturable": True, "fused": None}) == {"foreach": True}
    assert adapter.while_updating({"capturable": True, "fused": True}) == {}
    assert adapter.while_updating({"capturable": False, "fused": None}) == {}
