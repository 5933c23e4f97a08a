"""Muon-Momo, MuonAdam-Momo and MuonMax-Momo of arXiv 2510.09827: the wrapper over their bases.

The reference is in NumPy, from the paper's formulas: F̄ averages f - ⟨g, x⟩, and

    τ = min( α, (F̄ + ⟨m, x⟩ - f*)/‖m‖* )    for steps along a direction of norm 1, else
    τ = min( α, (F̄ + ⟨m, x⟩ - f*)/‖m‖*² )

All averages start with the first value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import Averaging, MoMo, MoMoWrapper, ProposingAdapter
from momo_wrap.adapters import adapter_for
from momo_wrap.research import MuonMax
from momo_wrap.testing import check_adapter
from tests.problems import Problem, flat, last_step

BETA1, BETA2, EPS, SCALE = 0.9, 0.95, 1e-3, 1.5
STEPS = 100
NORMS = ("muon", "muonadam", "muonmax")

Array = NDArray[np.float64]


@dataclass
class Reference:
    """The three methods."""

    norm: str
    lr: float
    bound: float
    x: list[Array]
    m: list[Array] = field(default_factory=list)
    v: list[Array] = field(default_factory=list)
    offset: float | None = None
    tau: float = 0.0
    sizes: list[float] = field(default_factory=list)

    def step(self, loss: float, g: list[Array]) -> None:
        new = loss - sum(float((gi * xi).sum()) for gi, xi in zip(g, self.x, strict=True))
        if self.offset is None:
            self.m, self.v, self.offset = [gi.copy() for gi in g], [gi**2 for gi in g], new
        self.m = [BETA1 * mi + (1 - BETA1) * gi for mi, gi in zip(self.m, g, strict=True)]
        self.v = [BETA2 * vi + (1 - BETA2) * gi**2 for vi, gi in zip(self.v, g, strict=True)]
        self.offset = BETA1 * self.offset + (1 - BETA1) * new

        nuclear, rest = 0.0, 0.0
        moves: list[Array] = []
        for mi, vi in zip(self.m, self.v, strict=True):
            if mi.ndim == 2:
                u, s, vh = np.linalg.svd(mi, full_matrices=False)
                nuclear += SCALE * float(s.sum())
                moves.append(SCALE * u @ vh)
            else:
                moves.append(np.sign(mi) if self.norm == "muon" else mi / (np.sqrt(vi) + EPS))
                rest += float((mi * moves[-1]).sum())
        dual = nuclear + rest
        if self.norm == "muonmax":
            moves = [nuclear * s if s.ndim == 2 else s for s in moves]
            dual = nuclear**2 + rest
        along = sum(float((mi * xi).sum()) for mi, xi in zip(self.m, self.x, strict=True))
        self.tau = min(self.lr, (self.offset + along - self.bound) / dual)
        self.x = [xi - self.tau * s for xi, s in zip(self.x, moves, strict=True)]


class NormDescent(Optimizer):
    """The bases of the first two: a direction of norm 1 in the largest of the norms of layers."""

    def __init__(self, params: Any, lr: float, *, adam: bool) -> None:
        super().__init__(params, {"lr": lr, "adam": adam})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"], state["square"] = p.grad.clone(), p.grad.square()
                m, v = state["momentum_buffer"], state["square"]
                m.mul_(BETA1).add_(p.grad, alpha=1 - BETA1)
                v.mul_(BETA2).addcmul_(p.grad, p.grad, value=1 - BETA2)
                if p.dim() == 2:
                    u, _, vh = torch.linalg.svd(m, full_matrices=False)
                    move = SCALE * u @ vh
                else:
                    move = m / (v.sqrt() + EPS) if group["adam"] else m.sign()
                p.sub_(group["lr"] * move)


def averaging(*_: object) -> Averaging:
    return Averaging(BETA1, 1 - BETA1, first_weight=1.0)


ADAPTER = ProposingAdapter("momentum_buffer", averaging=averaging)


def base(norm: str, params: list[Tensor], lr: float) -> Optimizer:
    if norm == "muonmax":
        return MuonMax(params, lr, (BETA1, BETA2), SCALE, EPS)
    return NormDescent(params, lr, adam=norm == "muonadam")


def whole(norm: str, params: list[Tensor], lr: float, bound: float) -> MoMoWrapper:
    adapter = None if norm == "muonmax" else ADAPTER
    return MoMoWrapper(base(norm, params, lr), MoMo(bound), adapter=adapter)


def two(norm: str, params: list[Tensor], lr: float, bound: float) -> MoMoWrapper:
    """Matrices and the rest in optimizers of their own, under one model of the loss."""
    parts = [[p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]]
    bases = [base(norm, part, lr) for part in parts]
    return MoMoWrapper(bases, MoMo(bound), adapter=[ADAPTER, ADAPTER])


def numpy_of(tensors: list[Any]) -> list[Array]:
    return [tensor.detach().clone().numpy() for tensor in tensors]


def follow(
    make: Callable[[str, list[Tensor], float, float], MoMoWrapper],
    norm: str,
    bound: float,
    steps: int = STEPS,
) -> tuple[float, list[float], Reference]:
    """Return how far the two come apart, and τ/α of each step."""
    problem = Problem()
    lr = 3.0 if norm == "muonmax" else 1.0
    optimizer = make(norm, problem.params, lr, bound)
    reference = Reference(norm, lr, bound, numpy_of(problem.params))
    apart, thetas = 0.0, []
    for _ in range(steps):
        loss = problem.gradients()
        gradients = numpy_of([p.grad for p in problem.params])
        optimizer.step(loss=loss)
        reference.step(float(loss), gradients)
        found = flat(problem.params).numpy()
        expected = np.concatenate([x.reshape(-1) for x in reference.x])
        apart = max(apart, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
        thetas.append(float(last_step(optimizer).theta))
        if reference.tau < 0:
            break
    return apart, thetas, reference


@pytest.mark.parametrize("bound", [0.0, 0.4])
@pytest.mark.parametrize(
    ("make", "norm"), [(whole, norm) for norm in NORMS] + [(two, norm) for norm in NORMS[:2]]
)
def test_the_wrapper_is_the_method(make: Any, norm: str, bound: float) -> None:
    apart, thetas, _ = follow(make, norm, bound)
    assert len(thetas) == STEPS
    assert apart < 2e-14
    assert sum(theta < 1 for theta in thetas) > 20


@pytest.mark.parametrize("norm", NORMS)
def test_below_the_bound_the_formula_steps_back_and_the_wrapper_stops(norm: str) -> None:
    _, thetas, reference = follow(whole, norm, bound=3.0)
    assert reference.tau < 0
    assert thetas[-1] == 0


def test_laws_hold_for_the_base_of_the_third() -> None:
    def make(params: Any) -> MuonMax:
        return MuonMax(params, 0.1, (0.8, 0.95), SCALE, EPS)

    check_adapter(make, adapter_for(make([torch.zeros(2, 2)])))


def test_a_group_whose_matrices_count_with_the_rest() -> None:
    torch.manual_seed(0)
    values, grads = torch.randn(3, 2), torch.randn(3, 2)
    found = []
    for shape, matrices in (((3, 2), False), ((6,), True)):
        param = values.reshape(shape).clone().requires_grad_()
        param.grad = grads.reshape(shape).clone()
        MuonMax([{"params": [param], "matrices": matrices}], lr=0.1).step()
        found.append(param.detach().reshape(-1))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"scale": 0.0}, {"eps": 0.0}], ids=str
)
def test_settings_out_of_range_raise(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected an lr"):
        MuonMax([torch.zeros(2, 2)], **wrong)
