"""Models that are taken at an anchor, against the published methods written from their formulas."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Optimizer

from momo_wrap import (
    Averaging,
    MoMo,
    MoMoStar,
    MoMoWrapper,
    ProposingAdapter,
    StepRule,
    TrustedMoMo,
)
from momo_wrap.adapters import adapter_for
from momo_wrap.research import NGN, HeavyBall, PerGroup, SPSMax
from momo_wrap.testing import check_adapter
from tests.engine.test_blocks import peak_mib
from tests.problems import (
    Problem,
    flat,
    goes_on_from_a_file,
    last_step,
    relative_distance,
    take_step,
    thetas,
    trajectory,
)
from tests.test_host_visits import HostVisits

Array = NDArray[np.float64]
BETA, BETA2, EPS = 0.9, 0.99, 1e-3
STEPS = 200


@dataclass
class Toy:
    """Classification of noisy labels by a linear map, whose gradient is written out."""

    inputs: Array = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    batches: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        self.inputs = generator.normal(size=(256, 6))
        logits = self.inputs @ generator.normal(size=(6, 3)) + generator.normal(size=(256, 3))
        self.labels = logits.argmax(1)
        self.batches = generator.integers(256, size=(STEPS, 16))

    def evaluate(self, weights: Array, rows: NDArray[np.int64] | None = None) -> Any:
        """The loss on some rows, or on all, and its gradient."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        labels = self.labels if rows is None else self.labels[rows]
        scores = inputs @ weights
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        one_hot = np.eye(3)[labels]
        loss = -(logs * one_hot).sum(1).mean()
        return float(loss), inputs.T @ (np.exp(logs) - one_hot) / len(labels)

    def train(
        self, make: Callable[[list[Tensor]], MoMoWrapper], bounds: Array | None = None
    ) -> tuple[Array, list[float]]:
        """The weights after each step, as they are evaluated, and each θ."""
        weights = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
        optimizer = make([weights])
        switch: Any = optimizer
        history, thetas = [], []
        for k, rows in enumerate(self.batches):
            getattr(switch, "train", lambda: None)()
            loss, grad = self.evaluate(weights.detach().numpy(), rows)
            weights.grad = torch.from_numpy(grad)
            optimizer.step(loss=loss, lower_bound=None if bounds is None else float(bounds[k]))
            thetas.append(float(last_step(optimizer).theta))
            getattr(switch, "eval", lambda: None)()
            history.append(weights.detach().numpy().copy())
        return np.stack(history), thetas


class Diagonal:
    """D = sqrt(v/(1 - β2^k)) + ε, or the identity."""

    def __init__(self, *, adam: bool) -> None:
        self.adam, self.squares, self.steps = adam, np.zeros((6, 3)), 0

    def __call__(self, grad: Array) -> Any:
        if not self.adam:
            return 1.0
        self.steps += 1
        self.squares = BETA2 * self.squares + (1 - BETA2) * grad**2
        return np.sqrt(self.squares / (1 - BETA2**self.steps)) + EPS


Published = Callable[[Toy, float, bool], Array]


def schedule_free_polyak(toy: Toy, lr: float, adam: bool) -> Array:
    """ArXiv 2511.07767: η = min(α, [f - f* + β ⟨g, z - x⟩]₊ / ‖g‖²_{D⁻¹}), c = 1/(k + 1)."""
    diagonal = Diagonal(adam=adam)
    z = x = np.zeros((6, 3))
    history = []
    for k, rows in enumerate(toy.batches):
        loss, grad = toy.evaluate((1 - BETA) * z + BETA * x, rows)
        scale = diagonal(grad)
        gap = max(loss + BETA * (grad * (z - x)).sum(), 0.0)
        z = z - min(lr, gap / (grad**2 / scale).sum()) * grad / scale
        x = (1 - 1 / (k + 1)) * x + z / (k + 1)
        history.append(x)
    return np.stack(history)


def iams(toy: Toy, lr: float, adam: bool, bounds: Array | float = 0.0) -> Array:
    """ArXiv 2504.01898: z <- z - η D⁻¹ g and x <- (λ x + z)/(1 + λ), where g is taken at x."""
    diagonal, weight = Diagonal(adam=adam), BETA / (1 - BETA)
    z = x = np.zeros((6, 3))
    history = []
    for rows, bound in zip(toy.batches, np.broadcast_to(bounds, STEPS), strict=True):
        loss, grad = toy.evaluate(x, rows)
        scale = diagonal(grad)
        gap = max(loss - bound + (grad * (z - x)).sum(), 0.0)
        z = z - min(lr, gap / (grad**2 / scale).sum()) * grad / scale
        x = (weight * x + z) / (1 + weight)
        history.append(x)
    return np.stack(history)


def heavy_ball(size: Callable[[float, float, float], float]) -> Published:
    """x⁺ = x - (1 - β) γ D⁻¹ g + β (x - x₋), with γ from f, ‖g‖² and α."""

    def train(toy: Toy, lr: float, adam: bool) -> Array:
        diagonal = Diagonal(adam=adam)
        x = last = np.zeros((6, 3))
        history = []
        for rows in toy.batches:
            loss, grad = toy.evaluate(x, rows)
            scale = diagonal(grad)
            gamma = size(loss, (grad**2 / scale).sum(), lr)
            x, last = x - (1 - BETA) * gamma * grad / scale + BETA * (x - last), x
            history.append(x)
        return np.stack(history)

    return train


# arXiv 2508.15071, and arXiv 2406.04142 with the c of its formula.
ngn_m = heavy_ball(lambda f, square, c: c / (1 + c * square / (2 * f)))
mom_sps = heavy_ball(lambda f, square, cap: min(f / (0.7 * square), cap))

METHODS: dict[str, tuple[Published, StepRule]] = {
    "IAMS": (iams, MoMo()),
    "NGN-M": (ngn_m, NGN()),
    "MomSPS": (mom_sps, SPSMax(c=0.7)),
}


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("lr", [1e3, 3.0])
@pytest.mark.parametrize(("published", "rule"), METHODS.values(), ids=METHODS)
def test_heavy_ball_methods_are_the_published_ones(
    published: Published, rule: StepRule, lr: float, adam: bool
) -> None:
    def make(params: list[Tensor]) -> MoMoWrapper:
        beta2 = BETA2 if adam else None
        return MoMoWrapper(HeavyBall(params, lr, momentum=BETA, beta2=beta2, eps=EPS), rule)

    toy = Toy()
    found, fractions = toy.train(make)
    np.testing.assert_allclose(found, published(toy, lr, adam), rtol=1e-10, atol=1e-12)
    assert any(0 < theta < 1 for theta in fractions)


@pytest.mark.parametrize("adam", [False, True])
def test_iam_has_the_least_loss_of_each_batch(adam: bool) -> None:
    """IAM defines them; here they are any numbers below most of the losses."""
    toy = Toy()
    bounds = np.random.default_rng(1).uniform(0.0, 0.3, size=STEPS)

    def make(params: list[Tensor]) -> MoMoWrapper:
        beta2 = BETA2 if adam else None
        return MoMoWrapper(HeavyBall(params, 1e3, momentum=BETA, beta2=beta2, eps=EPS))

    found, _ = toy.train(make, bounds)
    np.testing.assert_allclose(found, iams(toy, 1e3, adam, bounds), rtol=1e-10, atol=1e-12)
    assert np.abs(found - iams(toy, 1e3, adam)).max() > 0.01


def schedule_free(
    params: list[Tensor], lr: float, adam: bool, rule: StepRule, adapter: Any = None
) -> MoMoWrapper:
    package: Any = pytest.importorskip("schedulefree")
    if adam:
        settings = {"betas": (BETA, BETA2), "eps": EPS}
        base = package.AdamWScheduleFree(params, lr=lr, weight_decay=0.0, **settings)
    else:
        base = package.SGDScheduleFree(params, lr=lr, momentum=BETA)
    return MoMoWrapper(base, rule, adapter=adapter)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("lr", [1e3, 3.0])
def test_schedule_free_polyak_is_the_published_one(lr: float, adam: bool) -> None:
    """By one line without arguments, to rounding, in x."""
    toy = Toy()
    found, fractions = toy.train(lambda params: schedule_free(params, lr, adam, MoMo()))
    np.testing.assert_allclose(found, schedule_free_polyak(toy, lr, adam), rtol=1e-10, atol=1e-12)
    assert any(0 < theta < 1 for theta in fractions)


@pytest.mark.parametrize("adam", [False, True])
def test_only_the_anchor_trains_at_a_cap_of_1000(adam: bool) -> None:
    """As well as at a cap that is right; a model of where gradients are taken does not."""
    toy = Toy()

    def loss(lr: float, adapter: ProposingAdapter | None = None) -> float:
        found, _ = toy.train(lambda params: schedule_free(params, lr, adam, MoMo(), adapter))
        return float(toy.evaluate(found[-1])[0])

    assert loss(1e3) < 1.05 * loss(1.0)
    assert loss(1e3, ProposingAdapter(iterates=("z",))) > 1.5 * loss(1.0)


PACKAGES = {
    "SGD": ("ScheduleFreeSGD", {"momentum": 0.9}),
    "AdamW": ("ScheduleFreeAdamW", {}),
    "AdamW, decoupled": ("ScheduleFreeAdamW", {"decoupling_c": 5.0}),
    "RAdam": ("ScheduleFreeRAdam", {}),
    "warm-up": ("ScheduleFreeSGD", {"momentum": 0.9, "warmup_steps": 20}),
    "polynomial weights": ("ScheduleFreeSGD", {"momentum": 0.9, "r": 1.0}),
}


@pytest.mark.parametrize(("name", "settings"), PACKAGES.values(), ids=PACKAGES)
def test_drift_is_where_a_base_goes_without_a_gradient(name: str, settings: dict[str, Any]) -> None:
    """θ = 0 is the step of the base with a gradient of 0."""
    package: Any = pytest.importorskip("pytorch_optimizer")
    param = torch.randn(7, dtype=torch.float64, requires_grad=True)
    base = getattr(package, name)([param], lr=0.1, weight_decay=0.0, **settings)
    base.train()
    rule = MoMo()
    optimizer = MoMoWrapper(base, rule)
    for _ in range(10):
        param.grad = torch.randn_like(param)
        optimizer.step(loss=1e3)
    other = param.detach().clone().requires_grad_()
    twin = getattr(package, name)([other], lr=0.1, weight_decay=0.0, **settings)
    twin.load_state_dict(base.state_dict())
    rule.lower_bound = 1e9
    param.grad = torch.randn_like(param)
    before, z = param.detach().clone(), base.state[param]["z"].clone()
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta == 0
    assert torch.equal(base.state[param]["z"], z)
    other.grad = torch.zeros_like(param)
    twin.step()
    torch.testing.assert_close(param, other)
    assert not torch.equal(param, before)


def polyak(params: Any, **settings: Any) -> HeavyBall:
    return HeavyBall(params, **{"lr": 0.3, "momentum": 0.7, **settings})


ANCHORED = adapter_for(HeavyBall([torch.zeros(1, requires_grad=True)]))
AVERAGINGS = {
    "gradient": Averaging(0.0, 1.0),
    "average": Averaging(0.6, 0.4, first_weight=1.0),
    "sum": Averaging(0.6, 1.0),
    "both": Averaging(0.6, 1.0, buffer_scale=0.5, grad_scale=0.7),
}


@pytest.mark.parametrize("limit", [None, 0.2])
@pytest.mark.parametrize("averaging", AVERAGINGS.values(), ids=AVERAGINGS)
def test_model_is_that_of_its_definition(averaging: Averaging, limit: float | None) -> None:
    """(1/ρ) Σ_j w_j c_j (f_j + ⟨g_j, z - y_j⟩), with c_j where gradients are clipped."""
    problem = Problem()
    adapter = ProposingAdapter(
        averaging=lambda *_: averaging, anchor="z", drift=lambda g: 1.0 - g["momentum"]
    )
    optimizer = MoMoWrapper(polyak(problem.params), MoMo(0.3), adapter=adapter, max_grad_norm=limit)
    past: list[tuple[float, float, Tensor, Tensor]] = []
    buffer: list[float] = []
    a, b = float(averaging.decay), float(averaging.weight)
    for step in range(30):
        y = flat(problem.params)
        states = [optimizer.state[p].get("z", p) for p in problem.params]
        z = flat(states)
        loss = problem.gradients()
        grad = flat([p.grad for p in problem.params if p.grad is not None])
        c = 1.0 if limit is None else min(1.0, limit / float(grad.norm()))
        past.append((c, float(loss), grad, y))
        optimizer.step(loss=loss)
        first = averaging.first_weight if step == 0 and averaging.first_weight is not None else b
        buffer = [a * weight for weight in buffer] + [float(first)]
        weights = [float(averaging.buffer_scale) * weight for weight in buffer]
        weights[-1] += float(averaging.grad_scale)
        total = sum(w * c for w, (c, *_) in zip(weights, past, strict=True))
        value = sum(
            w * c * (f + float(g @ (z - at)))
            for w, (c, f, g, at) in zip(weights, past, strict=True)
        )
        found = float(last_step(optimizer).value_after_decay)
        assert found == pytest.approx(value / total, rel=1e-6)
    assert not torch.equal(z, y)


def two_groups(params: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "momentum": 0.2}]


@pytest.mark.parametrize("make", [polyak, lambda p: polyak(two_groups(p), weight_decay=0.1)])
def test_without_a_bound_it_is_the_bare_base(make: Callable[[Any], Optimizer]) -> None:
    """Bit for bit, with several groups and weight decay."""
    wrapped = trajectory(lambda p: MoMoWrapper(make(p), MoMo(-math.inf)), 40)
    assert torch.equal(wrapped, trajectory(make, 40))


@pytest.mark.parametrize("settings", [{"lr": 0.05}, {"lr": 0.02, "beta2": 0.99, "eps": 1e-3}])
def test_laws_of_adapters(settings: dict[str, Any]) -> None:
    """All laws except the ones that compare with a model at the parameters."""
    others = ["proposing", "groups", "late group"]
    check_adapter(partial(HeavyBall, **settings), ANCHORED, skip=others)


def test_group_that_joins_late() -> None:
    """Without a bound it is the bare base; with one the model starts at the level of the others."""

    def run(bound: float | None) -> tuple[Tensor, Any]:
        problem = Problem()
        base = polyak(problem.params[:2])
        optimizer = base if bound is None else MoMoWrapper(base, MoMo(bound))
        for step in range(20):
            if step == 10:
                optimizer.add_param_group({"params": problem.params[2:], "lr": 0.1})
            take_step(optimizer, problem.gradients())
        return flat(problem.params), optimizer

    assert torch.equal(run(-math.inf)[0], run(None)[0])
    _, optimizer = run(0.3)
    assert 0 < last_step(optimizer).theta <= 1


def test_bare_it_is_heavy_ball_momentum() -> None:
    """x⁺ = x - (1 - β) α g + β (x - x₋), which is SGD whose buffer starts at 0."""
    problem = Problem()
    optimizer = HeavyBall(problem.params, lr=0.1, momentum=0.7)
    last = flat(problem.params)
    for _ in range(20):
        problem.gradients()
        x = flat(problem.params)
        grad = flat([p.grad for p in problem.params if p.grad is not None])
        optimizer.step()
        torch.testing.assert_close(flat(problem.params), x - 0.03 * grad + 0.7 * (x - last))
        last = x


def test_groups_are_added_up() -> None:
    """Several groups of one setting are one group; `PerGroup` sees what each adds."""
    one = trajectory(lambda p: MoMoWrapper(polyak(p), MoMo(0.3)), 30)
    several = trajectory(lambda p: MoMoWrapper(polyak([{"params": [x]} for x in p]), MoMo(0.3)), 30)
    assert relative_distance(several, one) < 1e-12
    single = trajectory(lambda p: MoMoWrapper(polyak(p), PerGroup(0.3)), 30)
    assert relative_distance(single, one) < 1e-12


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_beside_a_base_without_an_anchor(weight_decay: float) -> None:
    """With a momentum of 0 the anchor is where the parameters are, and both are SGD."""

    def joint(params: list[Tensor]) -> Optimizer:
        sgd = SGD(params[2:], lr=3.0, weight_decay=weight_decay)
        return MoMoWrapper([polyak(params[:2], lr=3.0, momentum=0.0), sgd], MoMo(0.3))

    def read(params: list[Tensor]) -> Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": params[:2]},
            {"params": params[2:], "weight_decay": weight_decay},
        ]
        return MoMoWrapper(SGD(groups, lr=3.0), MoMo(0.3))

    assert relative_distance(trajectory(joint, 40), trajectory(read, 40)) < 1e-12
    assert ((thetas(joint, 40) > 0) & (thetas(joint, 40) < 1)).any()


def test_maximising_is_minimising_the_negative() -> None:
    """For a package that keeps the setting as an attribute."""
    package: Any = pytest.importorskip("pytorch_optimizer")

    def wrapped(sign: float) -> Callable[[list[Tensor]], Optimizer]:
        def make(params: list[Tensor]) -> Optimizer:
            base = package.ScheduleFreeSGD(params, lr=10.0, maximize=sign < 0)
            base.train()
            return MoMoWrapper(base, MoMo(sign * 0.3))

        return make

    up = trajectory(wrapped(-1.0), 40, Problem(sign=-1.0))
    assert relative_distance(up, trajectory(wrapped(1.0), 40)) < 1e-12


def test_parameter_without_a_gradient_stays() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(polyak(problem.params), MoMo(0.3))
    for _ in range(5):
        take_step(optimizer, problem.gradients())
    loss = problem.gradients()
    problem.params[1].grad = None
    before = [p.detach().clone() for p in problem.params]
    optimizer.step(loss=loss)
    moved = [not torch.equal(p, b) for p, b in zip(problem.params, before, strict=True)]
    assert moved == [True, False, True, True]


def test_failing_rule_leaves_parameters_and_anchor() -> None:
    class Failing(MoMo):
        fails = False

        def __call__(self, *args: Any) -> Any:
            if self.fails:
                raise KeyError("rule")
            return super().__call__(*args)

    problem, rule = Problem(), Failing()
    optimizer = MoMoWrapper(polyak(problem.params), rule)
    take_step(optimizer, problem.gradients())
    before = flat(problem.params), flat([optimizer.state[p]["z"] for p in problem.params])
    rule.fails = True
    with pytest.raises(KeyError, match="rule"):
        take_step(optimizer, problem.gradients())
    after = flat(problem.params), flat([optimizer.state[p]["z"] for p in problem.params])
    assert all(map(torch.equal, before, after))


class Measuring(MoMo):
    """Keeps the measurements of the last step."""

    def __init__(self, bound: float) -> None:
        super().__init__(bound)
        self.seen: list[tuple[float, float]] = []

    def wants_slope(self, stats: Any) -> bool:
        return True

    def wants_probe(self, stats: Any) -> bool:
        return True

    def __call__(self, stats: Any, memory: Any) -> Any:
        assert stats.probed_decrease.isnan()
        self.seen.append((float(stats.probed_slope), float(stats.probed_prediction)))
        return super().__call__(stats, memory)


def test_slopes_are_along_the_move_of_the_anchor() -> None:
    """⟨g, z - z'⟩ beside θ times the decrease that was predicted, also where a run is resumed."""
    problem, rule = Problem(), Measuring(0.3)
    optimizer = MoMoWrapper(polyak(problem.params), rule)
    last_z, decrease = flat(problem.params), 0.0
    for step in range(12):
        if step == 6:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = MoMoWrapper(polyak(problem.params), rule)
            optimizer.load_state_dict(saved)
        loss = problem.gradients()
        grad = flat([p.grad for p in problem.params if p.grad is not None])
        z = flat([optimizer.state[p].get("z", p) for p in problem.params])
        optimizer.step(loss=loss, probe=lambda: float("nan"))
        if step > 1:  # in the first step the anchor comes into being
            found, predicted = rule.seen[-1]
            assert found == pytest.approx(float(grad @ (last_z - z)), abs=1e-12)
            assert predicted == pytest.approx(decrease)
        record = last_step(optimizer)
        last_z, decrease = z, float(record.theta * record.predicted_decrease)


@pytest.mark.parametrize("rule", [MoMo(0.3), MoMoStar(), TrustedMoMo(0.3)], ids=repr)
def test_run_goes_on_bit_for_bit_from_a_file(rule: StepRule) -> None:
    goes_on_from_a_file(lambda p: MoMoWrapper(polyak(p, beta2=0.9), rule), Problem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex128])
def test_other_dtypes(dtype: torch.dtype) -> None:
    problem = Problem(dtype=dtype)
    optimizer = MoMoWrapper(polyak(problem.params, beta2=0.9), MoMo(0.3))
    losses = [float(problem.gradients())]
    for _ in range(40):
        optimizer.step(loss=losses[-1])
        losses.append(float(problem.gradients()))
    assert sum(losses[-8:]) / 8 < 0.8 * losses[0]
    assert problem.params[0].dtype is dtype


def test_no_host_visits() -> None:
    def visits(*, wrap: bool) -> Any:
        param = torch.ones(4, 3, requires_grad=True)
        param.grad = torch.ones(4, 3)
        base = polyak([param], beta2=0.9)
        optimizer: Optimizer = MoMoWrapper(base) if wrap else base
        with HostVisits() as mode:
            for _ in range(3):
                take_step(optimizer, torch.tensor(1.0))
        return mode.seen

    assert visits(wrap=True) == visits(wrap=False)


def test_memory_is_the_documented_one() -> None:
    params = [torch.zeros(2048, 1024, requires_grad=True), torch.zeros(77, requires_grad=True)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = MoMoWrapper(polyak(params))
    optimizer.step(loss=1.0)
    assert isinstance(ANCHORED, ProposingAdapter)
    said = ANCHORED.memory(optimizer.base) / 2**20
    assert said == pytest.approx(24.0, abs=0.1)  # parameters, anchor and gradients
    assert peak_mib(optimizer) == pytest.approx(said, abs=5.0)  # but for blocks


def test_averaged_parameters_are_momentum() -> None:
    """So that a rule that needs momentum finds it."""
    problem = Problem()
    optimizer = MoMoWrapper(polyak(problem.params), TrustedMoMo(0.3))
    for _ in range(20):
        take_step(optimizer, problem.gradients())  # a warning would be an error
    assert "no_momentum" not in optimizer.diagnosis().symptoms


def a_tenth(_: dict[str, Any]) -> float:
    return 0.1


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an anchor that is no name": (
        lambda: ProposingAdapter(anchor=("z",)),  # type: ignore[arg-type]
        TypeError,
        "anchor must name an entry of the optimizer state, got tuple. Write "
        "ProposingAdapter(anchor='z').",
    ),
    "a drift without an anchor": (
        lambda: ProposingAdapter(drift=a_tenth),
        TypeError,
        "drift must be a function of a parameter group, and come with an anchor, got function and "
        "anchor=None",
    ),
    "a drift that is a number": (
        lambda: ProposingAdapter(anchor="z", drift=0.1),  # type: ignore[arg-type]
        TypeError,
        "got float and anchor='z'. Write ProposingAdapter(anchor='z', drift=lambda group: 0.1).",
    ),
    "momentum": (
        lambda: polyak([torch.zeros(1)], momentum=1.0),
        ValueError,
        "HeavyBall got momentum=1.0, expected at least 0 and below 1",
    ),
    "lr": (
        lambda: polyak([torch.zeros(1)], lr=-1.0),
        ValueError,
        "HeavyBall got lr=-1.0, expected at least 0",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_repr_tells_the_anchor() -> None:
    shown = repr(ANCHORED)
    assert "beta=0.0, iterates=('z',), anchor='z', drift=" in shown
