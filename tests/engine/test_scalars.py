"""The wrapper's scalars: their device and dtype, and settings that are tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from momo_wrap.engine.scalars import largest, scalar_template
from momo_wrap.rules import ModelStats, StepDecision
from tests.checks.test_errors import wrapped
from tests.problems import Problem, flat, kept, last_step, take_step
from tests.test_wrapper import one_parameter


def test_scalars_live_on_the_accelerator() -> None:
    """That of a parameter that can move."""
    params = [torch.ones(1, device=device, requires_grad=True) for device in ("cpu", "meta")]
    assert scalar_template([{"params": params}]).device.type == "meta"
    assert scalar_template([{"params": params[:1]}, {"params": params[1:]}]).device.type == "meta"
    frozen = torch.ones(1, device="meta")
    assert scalar_template([{"params": [frozen, params[0]]}]).device.type == "cpu"


def test_scalars_of_another_device_are_moved() -> None:
    """Kept scalars follow the parameters to another device."""
    optimizer = wrapped()
    saved = copy.deepcopy(optimizer.state_dict())
    other = MoMoWrapper(SGD([torch.empty(2, device="meta", requires_grad=True)], lr=0.1))
    other.load_state_dict(saved)
    assert kept(other)[0]["momo_loss_sum"].device.type == "meta"


def test_settings_of_shape_one() -> None:
    """Settings that are tensors of shape [1] count as numbers."""

    def run(lr: Any, betas: Any, decay: Any = 0.1) -> tuple[Tensor, MoMoWrapper]:
        problem = Problem()
        base = Adam(problem.params, lr=lr, betas=betas, weight_decay=decay, foreach=False)
        optimizer = MoMoWrapper(base)
        for _ in range(5):
            take_step(optimizer, problem.gradients())
        return flat(problem.params), optimizer

    problem = Problem()
    betas: Any = tuple(torch.tensor([value], dtype=torch.float64) for value in (0.9, 0.99))
    bare = Adam(problem.params, betas=betas, foreach=False)
    problem.gradients()
    try:
        bare.step()
    except (RuntimeError, TypeError) as error:
        pytest.skip(f"this torch does not take them: {error}")
    one = [torch.tensor([value], dtype=torch.float64) for value in (0.3, 0.9, 0.99)]
    as_tensors, optimizer = run(one[0], (one[1], one[2]))
    torch.testing.assert_close(as_tensors, run(0.3, (0.9, 0.99))[0])
    assert all(value.shape == () for value in vars(last_step(optimizer)).values())
    assert all(value.shape == () for value in optimizer.effective_lrs())


def test_tensor_lr_is_never_read() -> None:
    """A learning rate that is a tensor is never read in a step."""
    param = torch.empty(3, device="meta", requires_grad=True)
    param.grad = torch.empty_like(param)
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    optimizer.step(loss=torch.empty((), device="meta"))
    assert optimizer.effective_lrs()[0].is_meta


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("order", [1, -1])
def test_two_dtypes_each_in_its_own_precision(kind: type[Optimizer], order: int) -> None:
    """float32 and float64 parameters in one group move as they do in two."""

    def run(grouped: bool) -> tuple[Tensor, Tensor]:
        params = [torch.full((3,), 1 / 3, dtype=d) for d in (torch.float32, torch.float64)][::order]
        for param in params:
            param.requires_grad_()
        groups = [params] if grouped else [[param] for param in params]
        base = kind([{"params": some} for some in groups], lr=0.1)  # type: ignore[call-arg]
        optimizer = MoMoWrapper(base, MoMo(0.1))
        for _ in range(3):
            for param in params:
                param.grad = (param.detach() - 1 / 7).clone()
            optimizer.step(loss=0.11)
        wide = next(param for param in params if param.dtype is torch.float64)
        return wide.detach(), last_step(optimizer).theta

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=0.0)


def test_sums_are_float64_if_any_group_is() -> None:
    """A group of float32 does not round the sums of a group of float64."""
    params = [torch.zeros(1, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64)]
    for param in params:
        param.grad = torch.full_like(param, 1.0)
    params[1].grad = torch.tensor([1e-5], dtype=torch.float64)
    optimizer = MoMoWrapper(SGD([{"params": [param]} for param in params], lr=1.0))
    optimizer.step(loss=1.0)
    assert float(last_step(optimizer).predicted_decrease) == pytest.approx(1 + 1e-10, rel=1e-14)


def test_weights_are_as_wide_as_the_scalars() -> None:
    """R = 1, 0.9 + 0.1, ...: weights that float32 can't hold are exact in float64."""
    _, optimizer = one_parameter(lr=1e-3, momentum=0.9, dampening=0.9)
    for _ in range(3):
        optimizer.step(loss=1.0)
    assert float(kept(optimizer)[0]["momo_weight_sum"]) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_two_devices() -> None:
    """Parameters on two devices, in one group: as if they were on one."""

    def run(device: str) -> tuple[Tensor, Tensor]:
        params = [torch.ones(3), torch.ones(2, device=device)]
        for param in params:
            param.requires_grad_()
            param.grad = 2 * torch.ones_like(param)
        optimizer = MoMoWrapper(SGD(params, lr=1.0, momentum=0.9, weight_decay=0.1))
        for _ in range(3):
            optimizer.step(loss=5.0)
        return torch.cat([p.detach().cpu() for p in params]), last_step(optimizer).theta.cpu()

    torch.testing.assert_close(run("cuda"), run("cpu"))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.1, 0.5, 0.2], 0.5),
        ([2, torch.tensor([3.0]), 1.0], 3.0),
        ([torch.tensor(0.5, dtype=torch.float64)], 0.5),
        ([-1e-17, -1e-18], 0.0),  # a schedule's rounding
    ],
)
def test_largest_learning_rate(rates: list[Any], expected: float) -> None:
    found = largest(rates, torch.empty(0, dtype=torch.float32))
    assert found.shape == ()
    assert found.dtype is torch.float32
    assert found == expected


class WithoutLr(Optimizer):
    """Moves by its own measure."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None: ...  # type: ignore[override]


def test_a_group_without_a_learning_rate_counts_as_1() -> None:
    """Beside a rate of 0.1, in the rule's statistics."""
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(2)
    rule = Listening()
    optimizer = MoMoWrapper(
        [WithoutLr(params[:1]), SGD(params[1:], lr=0.1)], rule, adapter=[ProposingAdapter(), None]
    )
    optimizer.step(loss=1.0)
    assert rule.learning_rate == 1.0


class Listening(MoMo):
    """Keeps its statistics."""

    learning_rate = 0.0

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        self.learning_rate = float(stats.learning_rate)
        return super().__call__(stats, memory)
