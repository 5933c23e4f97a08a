"""The averaging coefficients and the model, apart from any optimizer."""

from __future__ import annotations

import pytest
import torch

from momo_wrap import Averaging
from momo_wrap.model import MomentumModel


def test_tensors_are_averaged_with_and_never_compared() -> None:
    """Values on the meta device can't be read, so that a comparison would raise."""
    beta = torch.empty((), device="meta")
    averaging = Averaging(beta, 1 - beta, bias_corrected=True)
    assert not averaging.differs_from(Averaging(beta, 1 - beta, bias_corrected=True))
    scaled = Averaging(0.9, 1.0, buffer_scale=beta, grad_scale=beta)
    assert scaled.uses_gradient
    assert not scaled.differs_from(Averaging(0.9, 1.0, buffer_scale=0.5, grad_scale=0.5))
    assert scaled.differs_from(Averaging(0.8, 1.0, buffer_scale=beta, grad_scale=beta))


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_first_weight_keeps_all_digits(dampening: float) -> None:
    """F and R of two steps, in float64 whatever the default dtype is."""
    averaging = Averaging(0.9, 1.0 - dampening, first_weight=1.0)
    scalars = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in MomentumModel.initial_scalars().items()
    }
    for loss in (3.0, 2.0):
        model = MomentumModel.of(scalars, averaging, torch.tensor(loss, dtype=torch.float64))
        scalars = model.scalars_after(torch.tensor(0.0, dtype=torch.float64))
    assert float(scalars["loss_sum"]) == 0.9 * 3.0 + (1.0 - dampening) * 2.0
    assert float(scalars["weight_sum"]) == 0.9 + (1.0 - dampening)


def test_every_coefficient_counts_in_a_comparison() -> None:
    """Each coefficient counts: groups that differ in any of them can't share a model."""
    same = {
        "decay": 0.9,
        "weight": 0.1,
        "first_weight": 1.0,
        "buffer_scale": 0.5,
        "grad_scale": 1.0,
    }
    assert not Averaging(**same).differs_from(Averaging(**same))  # type: ignore[arg-type]
    for name in same:
        other = Averaging(**{**same, name: 0.25})  # type: ignore[arg-type]
        assert other.differs_from(Averaging(**same)), name  # type: ignore[arg-type]
