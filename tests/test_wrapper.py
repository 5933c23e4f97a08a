"""The wrapper as a PyTorch optimizer: losses, groups, hooks, schedulers, missing gradients.

Gradients that come and go, and groups that join, are among the laws in testing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils._pytree import tree_map_only

from momo_wrap import (
    ModelStats,
    MoMo,
    MoMoStar,
    MoMoWrapper,
    ProposingAdapter,
    StepDecision,
    StepRule,
)
from momo_wrap.rules import WeightDecayForm
from tests.cases import ADAPTERS, Case
from tests.problems import Problem, flat, last_step, take_step, trajectory


def one_parameter(
    form: WeightDecayForm | None = None, **settings: Any
) -> tuple[Tensor, MoMoWrapper]:
    """Return x = 3 with gradient 4, under SGD."""
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    x.grad = torch.tensor([4.0], dtype=torch.float64)
    return x, MoMoWrapper(SGD([x], **{"lr": 1.0, **settings}), weight_decay_form=form)


LOSSES: dict[str, Any] = {
    "float": 2.0,
    "int": 2,
    "numpy": np.float32(2.0),
    "0-dim": torch.tensor(2.0),
    "one element": torch.tensor([[2.0]]),
    "bfloat16": torch.tensor(2.0, dtype=torch.bfloat16),
    "integer tensor": torch.tensor(2),
    "with graph": torch.tensor(1.0, requires_grad=True) * 2,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_kinds_of_loss(loss: Any) -> None:
    """The parameter moves to 3 - θ 4 with θ = f / ‖g‖² = 2 / 16."""
    x, optimizer = one_parameter()
    returned = optimizer.step(loss=loss)
    assert returned is loss or returned == float(loss)
    assert x.item() == 2.5
    x, optimizer = one_parameter()
    returned = optimizer.step(lambda: loss)
    assert returned is loss or returned == float(loss)
    assert x.item() == 2.5


def test_closure_computes_gradients() -> None:
    x, optimizer = one_parameter()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x**2).sum()  # 9, with gradient 6: θ = 9/36
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert isinstance(loss, Tensor)
    assert loss.item() == 9.0
    assert x.item() == 1.5


def test_last_step_and_effective_lrs() -> None:
    x, optimizer = one_parameter("proximal", weight_decay=0.5)
    assert optimizer.last_step is None
    assert optimizer.effective_lrs() == []
    optimizer.step(loss=2.0)
    c = 1 / 1.5
    h, decrease = 2.0 + (c - 1) * 12.0, c * 16.0
    record = last_step(optimizer)
    assert record.loss == 2.0
    assert record.value_after_decay == pytest.approx(h)
    assert record.predicted_decrease == pytest.approx(decrease)
    assert record.lower_bound == 0.0
    assert record.theta == 0.0  # h < 0: the decay alone goes below the bound
    assert optimizer.effective_lrs() == [0.0]
    assert x.item() == pytest.approx(c * 3.0)

    x, optimizer = one_parameter(weight_decay=0.5)
    optimizer.step(loss=2.0)
    record = last_step(optimizer)
    assert record.loss == 2.0
    value, gradient = 2.0 + 0.5 / 2 * 9.0, 4.0 + 0.5 * 3.0  # of the loss with the penalty
    assert record.value_after_decay == pytest.approx(value)
    assert record.predicted_decrease == pytest.approx(gradient**2)
    assert record.theta == pytest.approx(value / gradient**2)
    assert x.item() == pytest.approx(3.0 - value / gradient)

    x, optimizer = one_parameter(lr=0.1)
    optimizer.step(loss=8.0)
    record = last_step(optimizer)
    assert record.theta == 1.0
    assert record.theta_uncapped == pytest.approx(8.0 / 1.6)
    assert optimizer.effective_lrs() == [pytest.approx(0.1)]
    assert all(value.shape == () for value in vars(record).values())


def test_effective_lrs_of_groups() -> None:
    params = [torch.ones(1, requires_grad=True) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(1)
    groups = [{"params": [params[0]], "lr": 1.0}, {"params": [params[1]], "lr": 3.0}]
    optimizer = MoMoWrapper(SGD(groups))
    optimizer.step(loss=1.0)
    optimizer.param_groups[0]["lr"] = 5.0  # the value of the next step does not matter
    assert optimizer.effective_lrs() == [0.25, 0.75]


def test_is_an_optimizer_that_shares_its_base() -> None:
    problem = Problem()
    base = AdamW(problem.params, lr=0.1)
    optimizer = MoMoWrapper(base)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.base is base
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    assert "AdamW" in repr(optimizer)
    assert "MoMo(lower_bound=0.0)" in repr(optimizer)


@pytest.mark.parametrize("on_base", [False, True])
def test_scheduler_sets_the_cap(on_base: bool) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), MoMo(-math.inf))
    scheduler = torch.optim.lr_scheduler.StepLR(
        optimizer.base if on_base else optimizer, step_size=1, gamma=0.1
    )
    caps = []
    for _ in range(3):
        take_step(optimizer, problem.gradients())
        caps.append(float(optimizer.effective_lrs()[0]))
        scheduler.step()
    assert caps == pytest.approx([0.1, 0.01, 0.001])


def test_learning_rate_zero_stands_still() -> None:
    """Warm-up from 0: N = 0, and θ does not matter."""
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.0))
    before = flat(problem.params)
    take_step(optimizer, problem.gradients())
    assert torch.equal(flat(problem.params), before)
    optimizer.param_groups[0]["lr"] = 0.1
    take_step(optimizer, problem.gradients())
    assert not torch.equal(flat(problem.params), before)
    assert flat(problem.params).isfinite().all()


def test_step_hooks_run_once_on_wrapper_and_base() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1))
    calls: list[str] = []
    for name, hooked in (("wrapper", optimizer), ("base", optimizer.base)):

        def note(when: str, name: str = name) -> Callable[..., None]:
            return lambda *_: calls.append(f"{name} {when}")

        hooked.register_step_pre_hook(note("pre"))
        hooked.register_step_post_hook(note("post"))
    take_step(optimizer, problem.gradients())
    assert calls == ["wrapper pre", "base pre", "base post", "wrapper post"]


@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_parameter_without_gradient(case: Case) -> None:
    """It does not move, has no state, and the others go on as if it were not there."""
    idle = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with_idle = trajectory(lambda p: MoMoWrapper(case.make([idle, *p], weight_decay=0.1)), 10)
    without = trajectory(lambda p: MoMoWrapper(case.make(p, weight_decay=0.1)), 10)
    assert torch.equal(with_idle, without)
    assert torch.equal(idle, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_freezing_and_unfreezing(case: Case) -> None:
    """A frozen parameter and its state do not change; later it continues as the bare one."""

    def run(wrap: bool) -> Tensor:
        problem = Problem()
        bare = case.make(problem.params)
        optimizer = MoMoWrapper(bare, MoMo(-math.inf)) if wrap else bare
        frozen = problem.params[2]
        for step in range(12):
            frozen.requires_grad_(not 4 <= step < 8)
            before = frozen.detach().clone()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            if not frozen.requires_grad:
                frozen.grad = None
            loss = problem.loss(problem.params, problem.next_batch())
            loss.backward()
            take_step(optimizer, loss.detach())
            assert torch.equal(frozen.detach(), before) != frozen.requires_grad
        return flat(problem.params)

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=1e-12)


def test_no_gradients_at_all() -> None:
    x, optimizer = one_parameter()
    optimizer.zero_grad(set_to_none=False)
    assert [p.grad for p in optimizer.param_groups[0]["params"]] == [0.0]
    optimizer.zero_grad()
    assert x.grad is None
    optimizer.step(loss=1.0)
    assert x.item() == 3.0


@pytest.mark.parametrize(
    ("case", "star"),
    [*((c, True) for c in ADAPTERS if c.takes_maximize), (ADAPTERS[0], False)],
    ids=str,
)
def test_maximize_is_minimisation_of_the_negative(case: Case, star: bool) -> None:
    """Loss, bound and gradients change sign together, and the record is the user's."""
    settings: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.1}

    def rule(bound: float) -> MoMo | MoMoStar:
        return MoMoStar(bound) if star else MoMo(bound)

    down, up = Problem(), Problem(sign=-1.0)
    minimiser = MoMoWrapper(case.make(down.params, **settings), rule(0.2))
    maximiser = MoMoWrapper(case.make(up.params, maximize=True, **settings), rule(-0.2))
    for _ in range(20):
        take_step(minimiser, down.gradients())
        take_step(maximiser, up.gradients())
        one, other = last_step(minimiser), last_step(maximiser)
        assert one.theta == other.theta
        assert one.value_after_decay == -other.value_after_decay
        assert one.lower_bound == -other.lower_bound
        assert one.loss == -other.loss
        assert one.predicted_decrease == other.predicted_decrease
    assert torch.equal(flat(down.params), flat(up.params))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scalars_are_at_least_float32(dtype: torch.dtype) -> None:
    """Sums over 10^5 elements, each far below the resolution of the total in low precision."""
    x = torch.zeros(100_000, dtype=dtype, requires_grad=True)
    x.grad = torch.full_like(x, 2.0**-7)
    optimizer = MoMoWrapper(SGD([x], lr=1.0))
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta.dtype is torch.float32
    assert optimizer._memory.averages.dtype is torch.float32
    exact = 100_000 * 2.0**-14
    assert float(last_step(optimizer).predicted_decrease) == pytest.approx(exact, rel=1e-6)


def test_scalars_are_float64_if_any_parameter_is() -> None:
    params = [
        torch.ones(2, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float64)
    ]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = MoMoWrapper(SGD(params, lr=1.0))
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta.dtype is torch.float64


@pytest.mark.parametrize("case", [c for c in ADAPTERS if c.takes_complex], ids=str)
def test_complex_parameters_are_pairs_of_reals(case: Case) -> None:
    """With truncation and decay, a complex parameter moves as its real and imaginary parts."""
    complex_x = torch.tensor([1.0 + 2.0j, -0.5 + 0.3j], dtype=torch.complex128).requires_grad_()
    real_x = torch.view_as_real(complex_x.detach()).clone().requires_grad_()
    settings = {"lr": 0.5, "weight_decay": 0.1}
    one = MoMoWrapper(case.make([complex_x], **settings), MoMo(0.1))
    other = MoMoWrapper(case.make([real_x], **settings), MoMo(0.1))
    for step in range(1, 10):
        gradient = complex_x.detach() * (1 + 0.1j * step)
        complex_x.grad = gradient
        real_x.grad = torch.view_as_real(gradient).clone()
        loss = float(gradient.abs().sum())
        one.step(loss=loss)
        other.step(loss=loss)
        assert float(last_step(one).theta) == pytest.approx(float(last_step(other).theta))
    torch.testing.assert_close(torch.view_as_real(complex_x.detach()), real_x.detach())


@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_memory_layout_does_not_matter(case: Case) -> None:
    """Parameters in channels-last order, gradients in another one than the parameters."""

    def run(layout: torch.memory_format, grad_layout: torch.memory_format) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
        x = x.contiguous(memory_format=layout).requires_grad_()
        optimizer = MoMoWrapper(case.make([x], lr=1.0, weight_decay=0.01))
        for _ in range(5):
            grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x.grad = grad.contiguous(memory_format=grad_layout)
            optimizer.step(loss=1.0)
        return x.detach()

    plain = run(torch.contiguous_format, torch.contiguous_format)
    torch.testing.assert_close(run(torch.channels_last, torch.channels_last), plain)
    torch.testing.assert_close(run(torch.channels_last, torch.contiguous_format), plain)


def test_nesterov_whose_momentum_becomes_zero() -> None:
    problem, twin = Problem(), Problem()
    bare = SGD(twin.params, lr=0.01, momentum=0.9, nesterov=True)
    optimizer = MoMoWrapper(
        SGD(problem.params, lr=0.01, momentum=0.9, nesterov=True), MoMo(-math.inf)
    )
    for step in range(6):
        for group in (*optimizer.param_groups, *bare.param_groups):
            group["momentum"] = 0.0 if step == 3 else 0.9
        take_step(optimizer, problem.gradients())
        take_step(bare, twin.gradients())
    torch.testing.assert_close(flat(problem.params), flat(twin.params), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steep_model_in_float32(momentum: float) -> None:
    """A gradient whose square is beyond float32 stops the step instead of ending the run."""
    x = torch.ones(1, requires_grad=True)
    optimizer = MoMoWrapper(SGD([x], lr=0.1, momentum=momentum))
    x.grad = torch.tensor([1e30])
    optimizer.step(loss=1.0)
    assert x.item() == 1.0
    for _ in range(800):  # until the buffer has forgotten it
        x.grad = torch.tensor([1.0])
        optimizer.step(loss=1.0)
        assert x.isfinite()
    assert x.item() < 0.9


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steep_model_without_a_bound_in_float32(momentum: float) -> None:
    params = [torch.ones(1, requires_grad=True) for _ in range(2)]
    bare = SGD([params[0]], lr=0.1, momentum=momentum)
    optimizer = MoMoWrapper(SGD([params[1]], lr=0.1, momentum=momentum), MoMo(-math.inf))
    for gradient in (1e30, 1.0, 1.0, 1.0):
        for param in params:
            param.grad = torch.tensor([gradient])
        bare.step()
        optimizer.step(loss=1.0)
        torch.testing.assert_close(params[1], params[0])


@pytest.mark.parametrize("start_factor", [1 / 3, 0.1, 0.7])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_schedule_that_ends_at_zero(kind: type[Optimizer], start_factor: float) -> None:
    """LinearLR ends at a rounding error below 0, as often as not."""
    ends = []
    for total in (3, 4, 7, 12, 30):
        x = torch.ones(2, requires_grad=True)
        optimizer = MoMoWrapper(kind([x], lr=1e-2))  # type: ignore[call-arg]
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=start_factor, end_factor=0.0, total_iters=total
        )
        for _ in range(total + 2):
            x.grad = torch.ones(2)
            optimizer.step(loss=1.0)
            scheduler.step()
        assert optimizer.effective_lrs() == [pytest.approx(0.0, abs=1e-15)]
        assert float(optimizer.effective_lrs()[0]) >= 0.0
        ends.append(optimizer.param_groups[0]["lr"])
    assert any(lr < 0 for lr in ends)


def test_hook_of_the_base_that_drops_gradients() -> None:
    """Hooks of the base run before anything moves; the step is still taken."""
    x, optimizer = one_parameter()
    optimizer.base.register_step_post_hook(lambda base, *_: base.zero_grad())
    optimizer.step(loss=2.0)
    assert x.item() == 2.5


def test_momo_star_with_a_higher_floor_than_before() -> None:
    _, optimizer = one_parameter(lr=0.01)
    optimizer.rule = MoMoStar(0.0)
    optimizer.step(loss=1.0)
    optimizer.rule = MoMoStar(0.99)
    optimizer.step(loss=1.0)
    assert last_step(optimizer).lower_bound >= 0.99


def test_scalars_keep_their_dtype_with_any_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.ones(2, dtype=torch.float32, requires_grad=True)
        x.grad = torch.ones_like(x)
        optimizer = MoMoWrapper(SGD([x], lr=1.0), MoMoStar())
        optimizer.step(loss=1.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in vars(last_step(optimizer)).values()} == {torch.float32}
    assert optimizer.effective_lrs()[0].dtype is torch.float32


def test_conjugated_gradients() -> None:
    values = torch.tensor([1 + 2j, -0.5 + 1j], dtype=torch.complex128)
    results = []
    for gradient in (values.conj(), values.conj().resolve_conj()):
        x = torch.ones(2, dtype=torch.complex128, requires_grad=True)
        x.grad = gradient
        MoMoWrapper(SGD([x], lr=0.1)).step(loss=1.0)
        results.append(x.detach())
    assert torch.equal(*results)
    assert not torch.equal(results[0], torch.ones_like(results[0]))


def test_rule_without_init() -> None:
    """A rule that does not call `StepRule.__init__` has the default bound."""

    class HalfStep(StepRule):
        def __init__(self) -> None:
            self.half = 0.5

        def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
            theta = torch.full_like(stats.loss, self.half)
            return StepDecision(theta, theta, stats.lower_bound)

    x, optimizer = one_parameter()
    optimizer.rule = HalfStep()
    optimizer.step(loss=1.0)
    assert x.item() == 1.0


def test_effective_lrs_are_the_callers() -> None:
    _, optimizer = one_parameter()
    optimizer.step(loss=1.0)
    optimizer.effective_lrs().clear()
    assert len(optimizer.effective_lrs()) == 1


def test_class_attributes_can_be_looked_up() -> None:
    assert MoMoWrapper.state is not None
    assert MoMoWrapper.param_groups is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_a_full_step(value: float) -> None:
    x, optimizer = one_parameter()
    optimizer.step(loss=value)
    assert last_step(optimizer).theta.isnan()
    assert x.isnan().all()


def test_empty_group_beside_others() -> None:
    """Beside others, a group may be empty, as one of frozen parameters is."""
    param = torch.tensor([1.0, 2.0], requires_grad=True)
    param.grad = torch.ones(2)
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [param], "lr": 0.5}]
    optimizer = MoMoWrapper(SGD(groups, lr=0.1))
    optimizer.step(loss=0.5)
    assert torch.equal(param.detach(), torch.tensor([0.75, 1.75]))


class Quantised(Tensor):
    """A subclass with values elsewhere, as those of quantised weights: it has no memory itself."""

    content: Tensor

    @classmethod
    def of(cls, content: Tensor) -> Quantised:
        make: Any = Tensor._make_wrapper_subclass
        made: Quantised = make(cls, content.shape, dtype=torch.float32)
        made.content = content
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls.of(args[0].content)
        args, kwargs = tree_map_only(cls, lambda t: t.content.float(), (args, kwargs or {}))
        return func(*args, **kwargs)


def without_storage() -> nn.Parameter:
    param = nn.Parameter(torch.ones(3), requires_grad=False)
    param.untyped_storage().resize_(0)
    return param


ALIAS = torch.ones(3)
FROZEN: dict[str, Callable[[], Tensor]] = {
    "quantised": lambda: nn.Parameter(Quantised.of(torch.ones(3, dtype=torch.int8)), False),
    "alias": lambda: nn.Parameter(ALIAS, requires_grad=False),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: nn.Parameter(torch.ones(3, device="meta"), requires_grad=False),
    "float64": lambda: torch.ones(3, dtype=torch.float64),
    "integers": lambda: torch.ones(3, dtype=torch.int8),
    "without storage": without_storage,
    "lazy": lambda: nn.UninitializedParameter(requires_grad=False),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "expanded": lambda: torch.ones(1).expand(3),
}


@pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("adapter", [None, ProposingAdapter()], ids=["reading", "proposing"])
def test_frozen_parameters_are_left_alone(make: Callable[[], Tensor], adapter: Any) -> None:
    """In any place: two of a kind, one in a separate group, one beside a moving parameter."""
    results = []
    for frozen in [[], [make(), make()]]:
        x = torch.tensor([3.0, 1.0], requires_grad=True)
        base = AdamW([{"params": frozen[:1]}, {"params": [*frozen[1:], x]}], lr=0.1)
        optimizer = MoMoWrapper(base, MoMo(0.5), adapter=adapter)
        for _ in range(3):
            x.grad = 2 * x.detach()
            optimizer.step(loss=x.detach().square().sum())
        optimizer.load_state_dict(optimizer.state_dict())
        x.grad = 2 * x.detach()
        optimizer.step(loss=x.detach().square().sum())
        assert last_step(optimizer).theta.dtype is torch.float32
        results.append(x.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("adapter", [None, ProposingAdapter()], ids=["reading", "proposing"])
def test_lazy_modules_train_as_others(adapter: Any) -> None:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    results: list[dict[str, Tensor]] = []
    for lazy in [True, False]:
        first = nn.LazyLinear(3) if lazy else nn.Linear(4, 3)
        model = nn.Sequential(first, nn.Tanh(), nn.Linear(3, 1))
        if not lazy:
            model.load_state_dict(results[0])
        optimizer = MoMoWrapper(AdamW(model.parameters(), lr=0.1), adapter=adapter)
        unused = MoMoWrapper(SGD([*nn.LazyLinear(2).parameters(), torch.ones(1)], lr=0.1))
        unused.step(loss=1.0)  # the bare optimizer leaves those without gradient alone, too
        if lazy:
            model(inputs)
            results.append({name: value.clone() for name, value in model.state_dict().items()})
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        results.append(model.state_dict())
    _, lazily, at_once = results
    assert all(torch.equal(lazily[name], at_once[name]) for name in at_once)
