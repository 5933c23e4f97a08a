"""A base may move parameters that have no gradient; they move by the fraction θ of that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from momo_wrap.testing.blocks import block_elements
from tests.problems import last_step


class ZeroFillingMuon(Optimizer):
    """Orthogonalised momentum with decoupled decay, for which a missing gradient is one of zeros.

    As in several public implementations. Keeps a copy of each parameter that moves with it.
    """

    def __init__(self, params: Any, lr: float, *, momentum: float = 0.9, fill: bool = True) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": 0.01, "fill": fill}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None and not group["fill"]:
                    continue
                if param.grad is None:
                    param.grad = torch.zeros_like(param)
                entry = self.state[param]
                if not entry:
                    entry["buffer"] = torch.zeros_like(param)
                    entry["copy"] = param.clone()
                entry["buffer"].lerp_(param.grad, 1 - group["momentum"])
                left, _, right = torch.linalg.svd(entry["buffer"], full_matrices=False)
                is_zero = not entry["buffer"].any()
                for moving in (param, entry["copy"]):
                    moving.mul_(1 - group["lr"] * group["weight_decay"])
                    if not is_zero:
                        moving.sub_(left @ right, alpha=group["lr"])


SHAPES = [(4, 3), (3, 3), (9, 8), (5, 4), (8, 9)]
# A packed one, and one in blocks of its own, where they have at most 64 elements.
WITHOUT = [1, 4]


def gradients(params: Iterable[Tensor], without: Iterable[int] = ()) -> Tensor:
    """Set the gradients of a quadratic, but for some parameters; return the loss."""
    loss = torch.zeros((), dtype=torch.float64)
    for i, param in enumerate(params):
        param.grad = None if i in without else param.detach().clone()
        loss += 0.5 * param.detach().double().square().sum()
    return loss


def make(dtype: torch.dtype = torch.float64, lr: float = 100.0, **more: Any) -> MoMoWrapper:
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES
    ]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": lr / 2}]
    adapter = ProposingAdapter(iterates=("copy",))
    return MoMoWrapper(ZeroFillingMuon(groups, lr, **more), MoMo(), adapter=adapter)


def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


@pytest.mark.parametrize("elements", [64, 2**18])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("before", [0, 1, 4], ids=lambda steps: f"after {steps} steps")
def test_what_has_no_gradient_moves_by_the_fraction(
    before: int, momentum: float, elements: int
) -> None:
    with block_elements(elements):
        optimizer = make(momentum=momentum)
        for _ in range(before):
            optimizer.step(loss=gradients(params_of(optimizer)))
        loss = gradients(params_of(optimizer), WITHOUT)
        bare = copy.deepcopy(optimizer.base)
        bare.step()
        starts = [param.detach().clone() for param in params_of(optimizer)]
        copies = [
            optimizer.state[p]["copy"].clone() if before else p.detach().clone()
            for p in params_of(optimizer)
        ]
        optimizer.step(loss=loss)
    theta = float(last_step(optimizer).theta)
    assert 1e-5 < theta < 5e-2
    for i, param in enumerate(params_of(optimizer)):
        alone = params_of(bare)[i]
        its = [
            (param.detach() - starts[i], alone.detach() - starts[i]),
            (optimizer.state[param]["copy"] - copies[i], bare.state[alone]["copy"] - copies[i]),
        ]
        for moved, move in its:
            assert move.norm() > 1.0  # also where there is no gradient
            torch.testing.assert_close(moved, theta * move, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision(dtype: torch.dtype) -> None:
    class Decaying(SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            with torch.no_grad():
                for param in params_of(self):
                    param.mul_(1.0 if param.grad is not None else -9.0)

    params = [torch.ones(3, dtype=dtype, requires_grad=True) for _ in range(2)]
    optimizer = MoMoWrapper(Decaying(params, lr=100.0), MoMo(), adapter=ProposingAdapter())
    params[0].grad = torch.ones_like(params[0])
    optimizer.step(loss=0.1)
    theta = float(last_step(optimizer).theta)
    assert 0 < theta < 0.01
    expected = torch.full((3,), 1 - 10 * theta)
    torch.testing.assert_close(params[1].detach().float(), expected, rtol=1e-2, atol=0)


def test_nothing_moves_at_the_bound() -> None:
    optimizer = make()
    optimizer.step(loss=gradients(params_of(optimizer)))
    starts = [param.detach().clone() for param in params_of(optimizer)]
    loss = gradients(params_of(optimizer), WITHOUT)
    optimizer.rule = MoMo(float(loss) + 1e6)
    optimizer.step(loss=loss)
    for param, start in zip(params_of(optimizer), starts, strict=True):
        assert torch.equal(param.detach(), start)


def test_frozen_parameters_are_not_touched() -> None:
    """By a base that ignores parameters without a gradient."""
    optimizer = make(fill=False)
    params = params_of(optimizer)
    optimizer.step(loss=gradients(params))
    for i in WITHOUT:
        params[i].requires_grad_(False)
    starts = {i: (params[i].detach().clone(), params[i]._version) for i in WITHOUT}
    for _ in range(3):
        optimizer.step(loss=gradients(params, WITHOUT))
    for i, (start, version) in starts.items():
        assert torch.equal(params[i].detach(), start)
        assert params[i]._version == version


ERRORS: list[type[BaseException]] = [RuntimeError, KeyboardInterrupt]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("after", range(1, len(SHAPES) + 1))
def test_a_base_that_raises_has_moved_nothing(after: int, error: type[BaseException]) -> None:
    """However many parameters it had moved already, with a gradient and without."""
    optimizer = make()
    optimizer.step(loss=gradients(params_of(optimizer)))
    memory = str(optimizer.state_dict()["param_groups"])
    loss = gradients(params_of(optimizer), WITHOUT)
    starts = [param.detach().clone() for param in params_of(optimizer)]
    copies = [optimizer.state[param]["copy"].clone() for param in params_of(optimizer)]
    base = optimizer.base
    moved: list[Tensor] = []

    def fail_after_some() -> None:
        for param in params_of(base)[:after]:
            for moving in (param, base.state[param]["copy"]):
                moving.detach().add_(1.0)
            moved.append(param)
        raise error("simulated")

    own: Callable[..., Any] = base.step
    base.step = fail_after_some  # type: ignore[method-assign, assignment]
    with pytest.raises(error, match="simulated"):
        optimizer.step(loss=loss)
    assert len(moved) == after
    for param, start, its_copy in zip(params_of(optimizer), starts, copies, strict=True):
        assert torch.equal(param.detach(), start)
        assert torch.equal(optimizer.state[param]["copy"], its_copy)
    assert str(optimizer.state_dict()["param_groups"]) == memory
    base.step = own  # type: ignore[method-assign]
    optimizer.step(loss=loss)
    assert 0 < float(last_step(optimizer).theta) < 1
