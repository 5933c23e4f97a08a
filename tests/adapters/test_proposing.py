"""The adapter that lets the base take its step, and keeps a fraction of it."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import Averaging, MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, StepRule
from momo_wrap.adapters.proposal import GRAD_AVG_KEY
from tests.engine.test_blocks import peak_mib
from tests.problems import (
    Problem,
    flat,
    goes_on_from_a_file,
    kept,
    last_step,
    relative_distance,
    take_step,
    thetas,
    trajectory,
)
from tests.releases import Muon
from tests.test_host_visits import HostVisits


class Touchy(Optimizer):
    """Everything that a base may do: Nesterov momentum by hand, in a state that must be its own.

    It changes gradients in place, decays, and fails where it is told to.
    """

    def __init__(self, params: Any, lr: float = 0.01, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.fails_at: int | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["buffer"] = torch.zeros_like(p)
                assert set(state) == {"buffer"}
                p.grad.add_(p, alpha=group["weight_decay"])
                state["buffer"].mul_(0.9).add_(p.grad)
                p.grad.add_(state["buffer"], alpha=0.9)
                p.sub_(p.grad, alpha=group["lr"])
                if index == self.fails_at:
                    raise RuntimeError("out of memory")


def touchy(params: list[Tensor], lr: float = 0.02) -> Touchy:
    return Touchy(params, lr=lr, weight_decay=0.01)


def proposed(
    make: Callable[[list[Tensor]], Optimizer],
    rule: StepRule | None = None,
    adapter: ProposingAdapter | None = None,
) -> Callable[[list[Tensor]], MoMoWrapper]:
    adapter = ProposingAdapter() if adapter is None else adapter
    return lambda params: MoMoWrapper(make(params), rule, adapter=adapter)


def sgd_averaging(group: dict[str, Any], _: Any) -> Averaging:
    return Averaging(group["momentum"], 1.0, first_weight=1.0)


BY_KEY: dict[str, tuple[Callable[[list[Tensor]], Optimizer], ProposingAdapter]] = {
    "Adam": (lambda p: Adam(p, lr=0.1), ProposingAdapter("exp_avg", beta=0.9)),
    "SGD": (
        lambda p: SGD(p, lr=0.1, momentum=0.9),
        ProposingAdapter("momentum_buffer", averaging=sgd_averaging),
    ),
    "without momentum": (lambda p: SGD(p, lr=0.3), ProposingAdapter(beta=0.0)),
    "Adam without momentum": (
        lambda p: Adam(p, lr=0.1, betas=(0.0, 0.9)),
        ProposingAdapter(beta=0.0),
    ),
}


@pytest.mark.parametrize("rule", [MoMo(0.8), MoMoStar()], ids=repr)
@pytest.mark.parametrize(("make", "adapter"), BY_KEY.values(), ids=BY_KEY)
def test_average_of_the_base_is_that_of_the_reading_adapter(
    make: Callable[[list[Tensor]], Optimizer], adapter: ProposingAdapter, rule: StepRule
) -> None:
    reading = trajectory(lambda p: MoMoWrapper(make(p), rule), 40)
    assert relative_distance(trajectory(proposed(make, rule, adapter), 40), reading) < 1e-9
    fractions = thetas(proposed(make, rule, adapter), 40)
    assert ((fractions > 0) & (fractions < 1)).any()


def test_average_that_is_kept_is_a_mean() -> None:
    """It starts with the first gradient: B = g, then B <- 0.5 B + 0.5 g."""
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = proposed(lambda p: SGD(p, lr=1.0), MoMo(), ProposingAdapter(beta=0.5))([x])
    x.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer.step(loss=2.0)
    # s = -4, ⟨d, s⟩ = -16, θ = 2/16
    assert float(last_step(optimizer).theta) == 0.125
    assert x.item() == 2.5
    x.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step(loss=3.0)
    # B = 3, f̄ = 2.5, e = 0.5 · 4 · (-0.5) = -1, s = -2, θ = 1.5/6
    assert float(last_step(optimizer).value_after_decay) == 1.5
    assert float(last_step(optimizer).theta) == 0.25
    assert x.item() == 2.0


def test_without_a_bound_it_is_the_base_with_its_own_decay() -> None:
    wrapped = trajectory(proposed(touchy, MoMo(-math.inf)), 50)
    assert relative_distance(wrapped, trajectory(touchy, 50)) == 0.0


@pytest.mark.parametrize(
    "adapter",
    [
        ProposingAdapter(),
        ProposingAdapter(beta=0.0),
        ProposingAdapter(
            averaging=lambda *_: Averaging(0.9, 1.0, buffer_scale=0.9, grad_scale=1.0)
        ),
    ],
    ids=["average", "gradient", "both"],
)
def test_model_takes_the_gradients_as_they_were(adapter: ProposingAdapter) -> None:
    """The base decays and accelerates in `.grad`; the loss contains neither."""
    plain = thetas(proposed(lambda p: Touchy(p, lr=0.05), MoMo(0.8), adapter), 40)

    def same(params: list[Tensor]) -> Optimizer:
        return SGD(params, lr=0.05, momentum=0.9, nesterov=True, foreach=False)

    torch.testing.assert_close(plain, thetas(proposed(same, MoMo(0.8), adapter), 40))
    assert ((plain > 0) & (plain < 1)).any()


@pytest.mark.parametrize("make", [touchy, lambda p: Adam(p, lr=0.1)], ids=["Touchy", "Adam"])
def test_run_goes_on_bit_for_bit_from_a_file(make: Callable[[list[Tensor]], Optimizer]) -> None:
    optimizer = goes_on_from_a_file(proposed(make, MoMo(0.5)), Problem)
    assert all(GRAD_AVG_KEY in entry for entry in optimizer.state.values())


@pytest.mark.parametrize("fails_at", [0, 2])
def test_failing_base_leaves_the_parameters(fails_at: int) -> None:
    problem = Problem()
    optimizer = proposed(touchy)(problem.params)
    take_step(optimizer, problem.gradients())
    assert isinstance(optimizer.base, Touchy)
    before, settings = flat(problem.params), copy.deepcopy(optimizer.param_groups[0])
    optimizer.base.fails_at = fails_at
    loss = problem.gradients()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(loss=loss)
    assert torch.equal(flat(problem.params), before)
    assert str(optimizer.param_groups[0]) == str(settings)
    optimizer.base.fails_at = None
    take_step(optimizer, problem.gradients())
    assert not torch.equal(flat(problem.params), before)


def test_failing_rule_leaves_the_parameters() -> None:
    class Failing(MoMo):
        def __call__(self, *_: Any) -> Any:
            raise KeyError("rule")

    problem = Problem()
    before = flat(problem.params)
    optimizer = proposed(touchy, Failing())(problem.params)
    with pytest.raises(KeyError, match="rule"):
        take_step(optimizer, problem.gradients())
    assert torch.equal(flat(problem.params), before)


class Averaged(Optimizer):
    """Keeps a second sequence z, as schedule-free methods do; it starts at the parameter."""

    def __init__(self, params: Any, lr: float = 0.5) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            z = self.state[p].setdefault("z", p.clone())
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
            z.sub_(p.grad, alpha=10 * self.param_groups[0]["lr"])


@pytest.mark.parametrize("bound", [-math.inf, 0.0, 2.0])
def test_iterates_keep_the_same_fraction(bound: float) -> None:
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    adapter = ProposingAdapter(beta=0.0, iterates=("z",))
    optimizer = MoMoWrapper(Averaged([x]), MoMo(bound), adapter=adapter)
    place = 3.0
    for gradient in (4.0, 2.0):
        start = x.item()
        x.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step(loss=2.0)
        theta = float(last_step(optimizer).theta)
        assert theta == min(max(2.0 - bound, 0.0) / (0.5 * gradient**2), 1.0)
        place -= 5.0 * theta * gradient
        assert x.item() == pytest.approx(start - 0.5 * theta * gradient)
        assert optimizer.state[x]["z"].item() == pytest.approx(place)


def test_step_that_overflows_is_no_step() -> None:
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = MoMoWrapper(SGD([x], lr=1e30), MoMo(), adapter=ProposingAdapter())
    x.grad = torch.tensor([1e20])
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta == 0
    assert x.item() == 1.0


def test_base_without_a_learning_rate() -> None:
    """The effective learning rate is then the fraction itself."""
    problem = Problem()
    base = SGD(problem.params, lr=1.0)
    optimizer = MoMoWrapper(base, MoMo(0.5), adapter=ProposingAdapter())
    base.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=1.0))
    base.register_step_post_hook(lambda o, *_: o.param_groups[0].update(lr=None))
    base.param_groups[0]["lr"] = None
    take_step(optimizer, problem.gradients())
    assert optimizer.effective_lrs() == [last_step(optimizer).theta]


def test_complex_and_real_parameters_in_a_group() -> None:
    params = [
        torch.tensor([1.0 + 2.0j, -1.0j], requires_grad=True),
        torch.tensor([3.0], requires_grad=True),
        torch.tensor([2.0], dtype=torch.float64, requires_grad=True),
    ]
    twins = [p.detach().clone().requires_grad_() for p in params]
    ours = MoMoWrapper(SGD(params, lr=0.4), adapter=ProposingAdapter(beta=0.0))
    theirs = MoMoWrapper(SGD(twins, lr=0.4))
    for _ in range(3):
        for optimizer, some in ((ours, params), (theirs, twins)):
            loss = sum(p.abs().square().sum().double() for p in some)
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
        assert 0 < last_step(ours).theta < 1
        for mine, its in zip(params, twins, strict=True):
            torch.testing.assert_close(mine, its)


def test_maximize_as_an_attribute() -> None:
    """Some packages keep it on the optimizer instead of in the groups."""

    class Climber(Optimizer):
        maximize = True

        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=0.1)

    up = trajectory(proposed(Climber, MoMo(-0.8)), 40, Problem(sign=-1.0))
    down = trajectory(proposed(lambda p: SGD(p, lr=0.1), MoMo(0.8)), 40)
    assert relative_distance(up, down) < 1e-12


def big() -> list[Tensor]:
    params = [torch.zeros(2048, 1024, requires_grad=True), torch.zeros(77, requires_grad=True)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


@pytest.mark.parametrize(
    "adapter",
    [
        ProposingAdapter(),
        ProposingAdapter(beta=0.0),
        ProposingAdapter("exp_avg"),
        ProposingAdapter(averaging=lambda *_: Averaging(0.9, 1.0, grad_scale=1.0)),
    ],
    # The same in every process, which the address of a function is not.
    ids=["own", "gradient", "base's", "described"],
)
def test_memory_is_the_documented_one(adapter: ProposingAdapter) -> None:
    """At most that much more, but for blocks; nothing but the average is left after the step."""
    params = big()
    base = AdamW(params, fused=True)
    base.step()
    optimizer = MoMoWrapper(base, adapter=adapter)
    said = adapter.memory(base) / 2**20
    assert said == pytest.approx(8.0 * round(said / 8.0), abs=0.1)
    assert peak_mib(optimizer) == pytest.approx(said, abs=4.0)
    gc.collect()
    kinds = (Tensor, torch.nn.Parameter)
    tensors = [o for o in gc.get_objects() if type(o) in kinds]
    alive = sum(tensor.shape == params[0].shape for tensor in tensors)
    # the parameter, its gradient, two moments, and an average where one is kept
    assert alive == 4 + (GRAD_AVG_KEY in base.state[params[0]])


@pytest.mark.parametrize("make", [SGD, Muon, Adam])
def test_no_host_visits_of_its_own(make: type[Optimizer]) -> None:
    def visits(wrap: bool) -> Any:
        param = torch.ones(4, 3, requires_grad=True)
        param.grad = torch.ones(4, 3)
        base = make([param], lr=0.1)  # type: ignore[call-arg]
        optimizer = MoMoWrapper(base, adapter=ProposingAdapter()) if wrap else base
        loss = torch.tensor(1.0)
        with HostVisits() as mode:
            for _ in range(3):
                take_step(optimizer, loss)
        return mode.seen

    assert visits(wrap=True) == visits(wrap=False)


def test_average_survives_a_failure_before_the_base_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    optimizer = proposed(touchy)(problem.params)
    take_step(optimizer, problem.gradients())
    averages = [entry[GRAD_AVG_KEY].clone() for entry in optimizer.state.values()]
    clone, calls = Tensor.clone, []

    def failing(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(tensor)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("simulated")
        return clone(tensor, *args, **kwargs)

    loss = problem.gradients()
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "clone", failing)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step(loss=loss)
    kept = [entry[GRAD_AVG_KEY] for entry in optimizer.state.values()]
    assert all(torch.equal(left, right) for left, right in zip(kept, averages, strict=True))


def test_a_first_step_that_fails_leaves_no_entry() -> None:
    """A base may ask whether a parameter has an entry at all."""
    problem = Problem()
    optimizer = proposed(lambda p: SGD(p, lr=0.1))(problem.params)
    optimizer.base.register_step_pre_hook(fail_once())
    loss = problem.gradients()
    with pytest.raises(RuntimeError, match="once"):
        optimizer.step(loss=loss)
    assert len(optimizer.state) == 0
    optimizer.step(loss=loss)
    assert len(optimizer.state) == 4


def fail_once() -> Callable[..., None]:
    calls: list[Any] = []

    def hook(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("once")

    return hook


def reloaded(optimizer: MoMoWrapper, problem: Problem) -> MoMoWrapper:
    """Go over to another wrapper by a state dict that lacks the averages of gradients."""
    state_dict = copy.deepcopy(optimizer.state_dict())
    for entry in state_dict["state"].values():
        del entry[GRAD_AVG_KEY]
    other = proposed(lambda p: Adam(p, lr=0.1), MoMo(0.5))(problem.params)
    other.load_state_dict(state_dict)
    return other


def stripped(optimizer: MoMoWrapper, _: Problem) -> MoMoWrapper:
    """Take the averages out of the state that is there."""
    for entry in optimizer.state.values():
        del entry[GRAD_AVG_KEY]
    return optimizer


@pytest.mark.parametrize("lose", [reloaded, stripped])
def test_model_restarts_if_the_average_is_lost(
    lose: Callable[[MoMoWrapper, Problem], MoMoWrapper],
) -> None:
    problem = Problem()
    optimizer = proposed(lambda p: Adam(p, lr=0.1), MoMo(0.5))(problem.params)
    for _ in range(5):
        take_step(optimizer, problem.gradients())
    optimizer = lose(optimizer, problem)
    loss = problem.gradients()
    optimizer.step(loss=loss)
    assert float(last_step(optimizer).value_after_decay) == pytest.approx(float(loss))
    assert float(kept(optimizer)[0]["momo_weight_sum"]) == pytest.approx(1.0)


class WarmingUp(Optimizer):
    """Momentum that grows by the optimizer's own schedule, which it steps itself."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.02, "beta": 0.0, "count": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
            group["beta"] = 0.9 * (1.0 - 1.0 / group["count"])
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                    buffer.mul_(group["beta"]).add_(p.grad, alpha=1.0 - group["beta"])
                    p.sub_(buffer, alpha=group["lr"])


def warming_up(group: dict[str, Any], _: Any) -> Averaging:
    return Averaging(group["beta"], 1.0 - group["beta"])


def test_averaging_that_changes_in_the_step() -> None:
    """The coefficients are those after the base has stepped, for losses and gradients alike."""
    read = ProposingAdapter("buffer", averaging=warming_up)
    kept = ProposingAdapter(averaging=warming_up)
    paths = [trajectory(proposed(WarmingUp, MoMo(1.5), a), 40) for a in (read, kept)]
    assert relative_distance(paths[1], paths[0]) < 1e-12
    assert (thetas(proposed(WarmingUp, MoMo(1.5), kept), 40) < 1).any()


def test_average_in_another_dtype_than_the_parameter() -> None:
    """Some bases load their state as float32."""
    param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = proposed(lambda p: SGD(p, lr=0.1))([param])
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)
        average = optimizer.state[param][GRAD_AVG_KEY]
        assert average.dtype is torch.bfloat16
        optimizer.state[param][GRAD_AVG_KEY] = average.float()
