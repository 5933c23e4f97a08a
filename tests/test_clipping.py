"""Gradients that are clipped: the model knows by how much, and the base's steps are its own."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRule, TrustedMoMo
from tests.problems import Problem, flat, last_step
from tests.reference import AdamBase, Array, SGDBase
from tests.test_probes import EverySlope

LIMIT = 0.7  # the norms of the problem's gradients are below and above
BOUND = 0.1
Make = Callable[[list[Tensor]], Optimizer]

CASES: dict[str, tuple[Make, Callable[[], SGDBase | AdamBase], float, float]] = {
    "SGD": (lambda p: SGD(p, lr=5.0), SGDBase, 5.0, 0.0),
    "momentum": (lambda p: SGD(p, lr=2.0, momentum=0.9), lambda: SGDBase(0.9), 2.0, 0.0),
    "Nesterov": (
        lambda p: SGD(p, lr=2.0, momentum=0.9, nesterov=True),
        lambda: SGDBase(0.9, nesterov=True),
        2.0,
        0.0,
    ),
    "Adam": (lambda p: Adam(p, lr=5.0), AdamBase, 5.0, 0.0),
    "coupled decay": (
        lambda p: SGD(p, lr=2.0, momentum=0.9, weight_decay=0.1),
        lambda: SGDBase(0.9),
        2.0,
        0.1,
    ),
}


class Reference:
    """MoMo from its definition: a sum of all losses, gradients and places, with weights b c."""

    def __init__(self, x: Array, base: SGDBase | AdamBase, lr: float, decay: float) -> None:
        self.x, self.base, self.lr, self.decay = x, base, lr, decay
        # Each with the weight in the buffer, c, the loss, its gradient, and where they are of.
        self.past: list[tuple[float, float, float, Array, Array]] = []
        self.theta = math.nan
        self.factors: list[float] = []

    def step(self, loss: float, gradient: Array) -> None:
        self.base.step += 1
        a, b, p, q = self.base.weights()
        factor = min(1.0, LIMIT / (float(np.linalg.norm(gradient)) + 1e-6))
        self.factors.append(factor)
        self.past = [(a * w, *rest) for w, *rest in self.past]  # type: ignore[misc]
        self.past.append((b, factor, loss, gradient, self.x.copy()))
        weights = [p * w for w, *_ in self.past]
        weights[-1] += q
        total = sum(w * c for w, (_, c, *_) in zip(weights, self.past, strict=True))

        def model(x: Array) -> float:
            value = 0.0
            for w, (_, c, f, g, at) in zip(weights, self.past, strict=True):
                value += w * c * (f + float(g @ (x - at)))
                value += w * self.decay * (float(at @ at) / 2 + float(at @ (x - at)))
            return value / total

        d = sum(
            w * (c * g + self.decay * at)
            for w, (_, c, _, g, at) in zip(weights, self.past, strict=True)
        )
        move = self.lr * d / self.base.preconditioner(factor * gradient + self.decay * self.x)
        value, decrease = model(self.x), model(self.x) - model(self.x - move)
        self.theta = min(max((value - BOUND) / decrease, 0.0), 1.0)
        self.x = self.x - self.theta * move


def gradient_of(problem: Problem) -> Array:
    found: Array = flat([p.grad for p in problem.params if p.grad is not None]).numpy().copy()
    return found


@pytest.mark.parametrize("how", ["inside", "recorded"])
@pytest.mark.parametrize(("make", "make_base", "lr", "decay"), CASES.values(), ids=CASES)
def test_theta_is_that_of_the_definition(
    make: Make, make_base: Callable[[], Any], lr: float, decay: float, how: str
) -> None:
    problem = Problem()
    limit = LIMIT if how == "inside" else None
    optimizer = MoMoWrapper(make(problem.params), MoMo(BOUND), max_grad_norm=limit)
    reference = Reference(flat(problem.params).numpy().copy(), make_base(), lr, decay)
    thetas = []
    for step in range(40):
        reference.x = flat(problem.params).numpy().copy()  # so that rounding does not grow
        loss = problem.gradients()
        gradient = gradient_of(problem)
        if how == "recorded":
            norm = clip_grad_norm_(problem.params, LIMIT)
            optimizer.record_clipping((LIMIT / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step(loss=loss)
        reference.step(float(loss), gradient)
        thetas.append(float(last_step(optimizer).theta))
        assert thetas[-1] == pytest.approx(reference.theta, rel=1e-9, abs=1e-12), step
        np.testing.assert_allclose(flat(problem.params).numpy(), reference.x, rtol=1e-9, atol=1e-11)
    assert min(reference.factors) < 0.5
    assert max(reference.factors) == 1.0
    assert sum(0 < theta < 1 for theta in thetas) > 10


@pytest.mark.parametrize("make", [case[0] for case in CASES.values()], ids=CASES)
def test_without_a_bound_it_is_the_base_with_clipped_gradients(make: Make) -> None:
    bare, wrapped = Problem(), Problem()
    base = make(bare.params)
    optimizer = MoMoWrapper(make(wrapped.params), MoMo(-math.inf), max_grad_norm=LIMIT)
    for _ in range(8):  # rounding grows at such learning rates
        bare.gradients()
        clip_grad_norm_(bare.params, LIMIT)
        base.step()
        optimizer.step(loss=wrapped.gradients())
    torch.testing.assert_close(flat(wrapped.params), flat(bare.params), rtol=1e-9, atol=1e-11)


def test_a_norm_that_is_never_reached_changes_nothing() -> None:
    """Two groups that average differently, of which one joins late."""

    def train(limit: float | None) -> tuple[Tensor, float]:
        problem = Problem()
        groups: list[dict[str, Any]] = [
            {"params": problem.params[:1]},
            {"params": problem.params[1:3], "momentum": 0.5, "nesterov": True},
        ]
        optimizer = MoMoWrapper(SGD(groups, lr=2.0, momentum=0.9), max_grad_norm=limit)
        for step in range(30):
            if step == 10:
                optimizer.add_param_group({"params": problem.params[3:]})
            optimizer.step(loss=problem.gradients())
        return flat(problem.params), float(last_step(optimizer).value_after_decay)

    (clipped, value), (plain, expected) = train(1e9), train(None)
    torch.testing.assert_close(clipped, plain, rtol=1e-9, atol=1e-12)
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("how", ["inside", "recorded"])
def test_slopes_are_those_of_gradients_that_were_not_clipped(how: str) -> None:
    problem, rule = Problem(), EverySlope(-math.inf)
    limit = 0.01 if how == "inside" else None
    optimizer = MoMoWrapper(
        Adam(problem.params, lr=0.1, weight_decay=0.2), rule, max_grad_norm=limit
    )
    places = []
    for _ in range(4):
        places.append(flat(problem.params).clone())
        loss = problem.gradients()
        gradient = gradient_of(problem)
        if how == "recorded":
            norm = clip_grad_norm_(problem.params, 0.01)
            optimizer.record_clipping(0.01 / (norm + 1e-6))
        optimizer.step(loss=loss)
    then, now = (place.numpy() for place in places[2:])
    expected = float((gradient + 0.2 * now) @ (then - now))
    assert rule.seen[-1][0] == pytest.approx(expected, rel=1e-9)


def state_through_a_file(optimizer: MoMoWrapper) -> dict[str, Any]:
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


@pytest.mark.parametrize("rule", [MoMo(BOUND), TrustedMoMo(BOUND)], ids=["MoMo", "TrustedMoMo"])
def test_a_run_goes_on_bit_for_bit(rule: StepRule) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params, lr=5.0), rule, max_grad_norm=LIMIT)
    for _ in range(10):
        optimizer.step(loss=problem.gradients())
    saved = state_through_a_file(optimizer)
    twin = copy.deepcopy(problem)
    resumed = MoMoWrapper(AdamW(twin.params, lr=5.0), rule, max_grad_norm=LIMIT)
    resumed.load_state_dict(saved)
    for _ in range(10):
        optimizer.step(loss=problem.gradients())
        resumed.step(loss=twin.gradients())
    assert torch.equal(flat(problem.params), flat(twin.params))


def test_files_of_runs_that_did_not_clip_and_the_other_way_round() -> None:
    """The file's values count; if no gradient was clipped, S is R, for any entry of the file."""
    for first, second in ((None, LIMIT), (LIMIT, None)):
        problem = Problem()
        optimizer = MoMoWrapper(SGD(problem.params, lr=2.0, momentum=0.9), max_grad_norm=first)
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        saved = state_through_a_file(optimizer)
        entry = saved["param_groups"][0]["momo_clipped_weight_sum"]
        assert (entry < 0) == (first is None)
        if first is None:
            del saved["param_groups"][0]["momo_clipped_weight_sum"]
        twin = copy.deepcopy(problem)
        resumed = MoMoWrapper(SGD(twin.params, lr=2.0, momentum=0.9), max_grad_norm=second)
        resumed.load_state_dict(saved)
        optimizer.max_grad_norm = second
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
            resumed.step(loss=twin.gradients())
        assert torch.equal(flat(problem.params), flat(twin.params))
        assert optimizer.param_groups[0]["momo_clipped_weight_sum"] is None


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize(("before", "after"), [(LIMIT, LIMIT), (None, LIMIT), (LIMIT, None)])
def test_a_distributed_checkpoint_goes_on_bit_for_bit(
    before: float | None, after: float | None, flatten: bool
) -> None:
    """Flattened state dicts have the entries whose names are in the groups, and no others."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def begin(limit: float | None) -> tuple[nn.Module, MoMoWrapper]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        return model, MoMoWrapper(
            SGD(model.parameters(), lr=2.0, momentum=0.9), max_grad_norm=limit
        )

    def train(model: nn.Module, optimizer: MoMoWrapper) -> None:
        for seed in range(5):
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).double()
            optimizer.zero_grad()
            loss = (model(inputs) - inputs[:, :3]).square().mean()
            loss.backward()
            optimizer.step(loss=loss)

    model, optimizer = begin(before)
    train(model, optimizer)
    saved = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    twin, resumed = begin(after)
    set_state_dict(
        twin, resumed, model_state_dict=saved[0], optim_state_dict=saved[1], options=options
    )
    optimizer.max_grad_norm = after
    train(model, optimizer)
    train(twin, resumed)
    assert torch.equal(flat(list(model.parameters())), flat(list(twin.parameters())))


@pytest.mark.parametrize("make", [case[0] for case in CASES.values()], ids=CASES)
@pytest.mark.parametrize("how", ["inside", "recorded"])
def test_a_gradient_that_was_clipped_to_nothing_is_no_nan(make: Make, how: str) -> None:
    """As where the norm overflows: the step is the base's with a gradient of 0."""
    bare, wrapped = Problem(), Problem()
    base = make(bare.params)
    limit = 1.0 if how == "inside" else None
    optimizer = MoMoWrapper(
        make(wrapped.params), MoMo(-1e9), max_grad_norm=limit, nonfinite="raise"
    )
    for step in range(6):
        loss = wrapped.gradients()
        bare.gradients()
        for problem in (bare, wrapped):
            for param in problem.params:
                assert param.grad is not None
                param.grad.mul_(1e200 if step % 3 == 0 else 1e-3)
        clip_grad_norm_(bare.params, 1.0)
        if how == "recorded":
            norm = clip_grad_norm_(wrapped.params, 1.0)
            optimizer.record_clipping((1.0 / (norm + 1e-6)).clamp(max=1.0))
        base.step()
        optimizer.step(loss=loss)
        assert float(last_step(optimizer).theta) == 1.0
        assert math.isfinite(float(last_step(optimizer).value_after_decay))
    torch.testing.assert_close(flat(wrapped.params), flat(bare.params), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("how", ["inside", "recorded"])
def test_a_failed_step_is_repeated_with_the_same_clipping(
    how: str,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    problem = Problem()
    limit = 0.01 if how == "inside" else None
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), MoMo(-math.inf), max_grad_norm=limit)
    loss = problem.gradients()
    norm = float(np.linalg.norm(gradient_of(problem)))
    if how == "recorded":
        clip_grad_norm_(problem.params, 0.01)
        optimizer.record_clipping(0.01 / (norm + 1e-6))
    hook = optimizer.base.register_step_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            optimizer.step(loss=loss)
    hook.remove()
    optimizer.step(loss=loss)
    # Of slope ‖g‖ along a step of length 0.01.
    assert float(last_step(optimizer).predicted_decrease) == pytest.approx(0.01 * norm, rel=1e-3)


def test_clipping_of_a_step_that_raised_does_not_apply_to_the_next() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), MoMo(-math.inf), nonfinite="raise")
    problem.gradients()
    optimizer.record_clipping(0.5)
    with pytest.raises(FloatingPointError):
        optimizer.step(loss=math.nan)
    loss = problem.gradients()
    optimizer.record_clipping(0.25)
    optimizer.step(loss=loss)
    square = float(gradient_of(problem) @ gradient_of(problem))
    assert float(last_step(optimizer).predicted_decrease) == pytest.approx(4.0 * square)


def test_clipping_of_a_step_at_rest_does_not_apply_to_the_next() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.0), MoMo(-math.inf))
    problem.gradients()
    optimizer.record_clipping(0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1.0
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)


def test_nothing_is_read_on_the_host() -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    param = torch.empty(7, device="meta", requires_grad=True)
    optimizer = MoMoWrapper(Adam([param]), max_grad_norm=1.0)
    for _ in range(3):
        param.grad = torch.empty_like(param)
        optimizer.record_clipping(torch.empty((), device="meta"))
        optimizer.step(loss=torch.empty((), device="meta"))


def slope_seen(optimizer: MoMoWrapper, problem: Problem) -> float:
    """The decrease that the model predicts, over the decrease of the step's gradients."""
    optimizer.step(loss=problem.gradients())
    square = sum(float(p.grad.square().sum()) for p in problem.params if p.grad is not None)
    return float(last_step(optimizer).predicted_decrease) / square


def test_recorded_clipping_applies_to_one_step() -> None:
    """Factors are multiplied; `zero_grad`, and a step that a GradScaler skips, forget them."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), MoMo(-math.inf))
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)
    optimizer.record_clipping(0.5)
    optimizer.record_clipping(torch.tensor(0.5))
    assert slope_seen(optimizer, problem) == pytest.approx(4.0)
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)
    optimizer.record_clipping(0.5)
    optimizer.zero_grad()
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)
    optimizer.record_loss(1.0)
    optimizer.record_clipping(0.5)
    optimizer._step_supports_amp_scaling  # noqa: B018 -- as GradScaler, which skips the step
    optimizer.record_loss(problem.gradients())
    optimizer.step()
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)


@pytest.mark.parametrize("first", ["loss", "clipping"])
def test_clipping_left_by_a_skipped_step_is_replaced_in_either_order(first: str) -> None:
    """`GradScaler` asks its question before the step, and Lightning also before it clips."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), MoMo(-math.inf))
    for scale in (0.5, 0.25):  # the first of the two is skipped
        loss = problem.gradients()
        if first == "loss":
            optimizer.record_loss(loss)
            optimizer._step_supports_amp_scaling  # noqa: B018 -- as Lightning
        optimizer.record_clipping(scale)
        if first == "clipping":
            optimizer.record_loss(loss)
        optimizer._step_supports_amp_scaling  # noqa: B018 -- as GradScaler
    optimizer.step()
    square = float(gradient_of(problem) @ gradient_of(problem))
    assert last_step(optimizer).loss == loss
    assert float(last_step(optimizer).predicted_decrease) == pytest.approx(4.0 * square)


def test_a_step_that_is_left_out_leaves_no_factor_to_the_next() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), MoMo(-math.inf), nonfinite="skip")
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)
    problem.gradients()
    optimizer.record_clipping(0.5)
    optimizer.step(loss=math.nan)
    assert optimizer.skipped_steps == 1
    assert slope_seen(optimizer, problem) == pytest.approx(1.0)


def test_a_gradient_with_a_pending_negation_is_clipped_as_any_other() -> None:
    """The step uses the clipped gradients."""
    moved = []
    for negated in (False, True):
        param = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        gradient = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
        param.grad = torch._neg_view(-gradient) if negated else gradient
        MoMoWrapper(SGD([param], lr=1.0), MoMo(-math.inf), max_grad_norm=1.0).step(loss=1.0)
        moved.append(param.detach())
    torch.testing.assert_close(*moved, rtol=0, atol=0)
    assert float(moved[0].norm()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("lr", [1.0, 100.0])
def test_a_network_is_trained_at_high_learning_rates(lr: float) -> None:
    """Where the model does not know of the clipping, MoMo's steps are too long for it."""

    def accuracy(inside: bool) -> float:
        torch.manual_seed(0)
        centres = 2.0 * torch.randn(5, 20)
        layers = [nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
        model = nn.Sequential(*layers)
        adam = Adam(model.parameters(), lr=lr)
        optimizer = MoMoWrapper(adam, max_grad_norm=0.05 if inside else None)

        def batch(size: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(5, (size,))
            return centres[labels] + 2.0 * torch.randn(size, 20), labels

        for _ in range(400):
            inputs, labels = batch(32)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            if not inside:
                clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step(loss=loss)
        inputs, labels = batch(2000)
        return float((model(inputs).argmax(dim=1) == labels).float().mean())

    assert accuracy(inside=True) > 0.98 > 0.9 > accuracy(inside=False)


ERRORS: dict[str, tuple[Callable[[MoMoWrapper], object], type[Exception], str]] = {
    "a norm of 0": (
        lambda o: setattr(o, "max_grad_norm", 0.0),
        ValueError,
        "max_grad_norm must be above 0, got 0.0. Write MoMoWrapper",
    ),
    "a norm that is NaN": (
        lambda o: MoMoWrapper(o.base, max_grad_norm=math.nan),
        ValueError,
        "max_grad_norm must be above 0, got nan",
    ),
    "a norm that is a tensor": (
        lambda o: MoMoWrapper(o.base, max_grad_norm=torch.tensor(1.0)),  # type: ignore[arg-type]
        TypeError,
        "max_grad_norm must be a Python number or None, got tensor",
    ),
    "the norm for the factor": (
        lambda o: o.record_clipping(17.0),
        ValueError,
        "record_clipping\\(\\) got 17.0, expected the factor that the gradients were multiplied by",
    ),
    "several factors": (
        lambda o: o.record_clipping(torch.ones(2)),
        ValueError,
        "record_clipping\\(\\) got a tensor of shape \\[2\\]",
    ),
    "no factor": (
        lambda o: o.record_clipping(None),  # type: ignore[arg-type]
        TypeError,
        "record_clipping\\(\\) got None",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(
    call: Callable[[MoMoWrapper], object], error: type[Exception], message: str
) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), max_grad_norm=2.0)
    with pytest.raises(error, match=message):
        call(optimizer)
    assert optimizer.max_grad_norm == 2.0
    optimizer.step(loss=problem.gradients())
