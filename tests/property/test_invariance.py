"""Invariance to the split, order and groups of parameters, and to units."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from momo_wrap.testing.blocks import block_elements
from tests.cases import ADAPTERS, Case

ELEMENTS = 24
STEPS = 8

cuts = st.lists(st.integers(1, ELEMENTS - 1), max_size=5).map(lambda at: sorted(set(at)))


def quadratic(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A loss with its gradient, for any split of x."""
    scale = torch.linspace(0.1, 2.0, ELEMENTS, dtype=torch.float64)
    return (scale * (x - target) ** 2).sum() / 2, scale * (x - target)


def run(
    case: Case, rule: StepRule, lr: float, places: Sequence[int], order: Sequence[int], groups: int
) -> Tensor:
    """The trajectory with the parameters split at `places`, in `order`, assigned to `groups`."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ELEMENTS, generator=generator, dtype=torch.float64)
    edges = [0, *places, ELEMENTS]
    pieces = [start[low:high].clone().requires_grad_() for low, high in itertools.pairwise(edges)]
    ordered = [pieces[i % len(pieces)] for i in order if i < len(pieces)]
    dealt = [ordered[i::groups] for i in range(groups)]
    optimizer = MoMoWrapper(
        case.make([{"params": some} for some in dealt if some], lr=lr, weight_decay=0.1), rule
    )
    path = []
    for _ in range(STEPS):
        target = torch.randn(ELEMENTS, generator=generator, dtype=torch.float64)
        x = torch.cat([p.detach() for p in pieces])
        loss, gradient = quadratic(x, target)
        for piece, part in zip(
            pieces, torch.split(gradient, [p.numel() for p in pieces]), strict=True
        ):
            piece.grad = part.clone()
        optimizer.step(loss=loss)
        path.append(torch.cat([p.detach() for p in pieces]))
    return torch.stack(path)


@given(
    places=cuts,
    order=st.permutations(range(6)),
    groups=st.integers(1, 3),
    lr=st.sampled_from([1e-2, 0.3, 10.0]),
    star=st.booleans(),
)
@settings(max_examples=20)
@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_cutting_ordering_and_grouping_change_nothing(
    case: Case, places: list[int], order: list[int], groups: int, lr: float, star: bool
) -> None:
    rule = MoMoStar() if star else MoMo()
    whole = run(case, rule, lr, [], [0], 1)
    torch.testing.assert_close(
        run(case, rule, lr, places, order, groups), whole, rtol=1e-9, atol=1e-9
    )


@pytest.mark.slow
@given(places=cuts, elements=st.sampled_from([1, 2, 7, 24]))
@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_the_size_of_blocks_changes_nothing(case: Case, places: list[int], elements: int) -> None:
    whole = run(case, MoMo(), 0.3, places, range(6), 1)
    with block_elements(elements):
        cut = run(case, MoMo(), 0.3, places, range(6), 1)
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)


@given(scale=st.floats(-3, 3), momentum=st.sampled_from([0.0, 0.9]), bound=st.floats(-1, 0.1))
def test_scaling_the_loss_divides_the_uncapped_step_size(
    scale: float, momentum: float, bound: float
) -> None:
    """Loss, gradient and bound times c: the uncapped step size of SGD is divided by c."""
    factor = 10.0**scale
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2)]
    params[1].copy_(params[0])
    optimizers = [
        MoMoWrapper(SGD([params[0]], lr=1e9, momentum=momentum), MoMo(bound)),
        MoMoWrapper(SGD([params[1]], lr=1e9, momentum=momentum), MoMo(bound * factor)),
    ]
    for _ in range(4):
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        loss = 1.0 + float(torch.rand(1, generator=generator, dtype=torch.float64))
        params[0].grad, params[1].grad = gradient, gradient * factor
        optimizers[0].step(loss=loss)
        optimizers[1].step(loss=loss * factor)
        sizes = [o.last_step.theta_uncapped for o in optimizers if o.last_step is not None]
        assert float(sizes[1] * factor) == pytest.approx(float(sizes[0]), rel=1e-8)
