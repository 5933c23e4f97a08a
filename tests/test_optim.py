"""Classes that are made from parameters: the steps of the wrapper, and what configurations need."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

import momo_wrap
from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule, TrustedMoMo, optim
from momo_wrap.optim import (
    MoMoAdam,
    MoMoAdamW,
    MoMoOptimizer,
    MoMoSGD,
    TrustedAdam,
    TrustedAdamW,
    TrustedSGD,
    classes,
)
from momo_wrap.research import LinearSchedule, ScheduledBound
from tests.problems import Problem, flat, last_step, take_step, trajectory
from tests.releases import needs_torch

By = type[MoMoOptimizer]
# The base, the rule, and the defaults that the class gives the base.
READY: dict[By, tuple[type[Optimizer], type[StepRule], dict[str, Any]]] = {
    MoMoSGD: (SGD, MoMo, {}),
    MoMoAdam: (Adam, MoMo, {}),
    MoMoAdamW: (AdamW, MoMo, {}),
    TrustedSGD: (SGD, TrustedMoMo, {"lr": 100.0, "momentum": 0.9}),
    TrustedAdam: (Adam, TrustedMoMo, {"lr": 100.0}),
    TrustedAdamW: (AdamW, TrustedMoMo, {"lr": 100.0}),
}
OWN = [
    "rule",
    "lower_bound",
    "adapter",
    "weight_decay_form",
    "nonfinite",
    "max_grad_norm",
    "process_group",
    "compiled",
]


class ByStatement(MoMoOptimizer, base=NAdam, rule=TrustedMoMo(), lr=100.0, nonfinite="skip"):
    """As a user has it in a module of their own."""


class OfModel(MoMoAdamW):
    """Has a constructor of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=1.0)


class OfModelByStatement(MoMoOptimizer, base=AdamW, lr=1.0):
    """Has a base and a constructor of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), nonfinite="skip")


def made() -> By:
    return MoMoWrapper.of(NAdam, TrustedMoMo(rate=0.2), lr=100.0, nonfinite="skip")


CLASSES = [*READY, ByStatement, made()]
by_name = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


@pytest.mark.parametrize("settings", [{}, {"lr": 1.0, "weight_decay": 0.1}], ids=["none", "some"])
@pytest.mark.parametrize("kind", READY, ids=lambda kind: kind.__name__)
def test_steps_are_those_by_hand(kind: By, settings: dict[str, Any]) -> None:
    base, rule, defaults = READY[kind]

    def by_hand(params: Any) -> Optimizer:
        return MoMoWrapper(base(params, **{**defaults, **settings}), rule())

    assert torch.equal(
        trajectory(lambda params: kind(params, **settings), 20), trajectory(by_hand, 20)
    )


@pytest.mark.parametrize("kind", READY, ids=lambda kind: kind.__name__)
def test_the_wrappers_own_settings_arrive(kind: By) -> None:
    base, rule, defaults = READY[kind]
    optimizer = kind(
        Problem().params,
        lower_bound=0.3,
        weight_decay_form="proximal",
        nonfinite="raise",
        compiled=False,
        process_group=None,
    )
    assert type(optimizer.base) is base
    assert type(optimizer.rule) is rule
    assert optimizer.rule.lower_bound == 0.3
    assert (optimizer.weight_decay_form, optimizer.nonfinite) == ("proximal", "raise")
    assert (optimizer.compiled, optimizer.process_group) == (False, None)

    def by_hand(params: Any) -> Optimizer:
        return MoMoWrapper(
            base(params, **defaults), rule(lower_bound=0.3), weight_decay_form="proximal"
        )

    steps = trajectory(
        lambda params: kind(params, lower_bound=0.3, weight_decay_form="proximal"), 20
    )
    assert torch.equal(steps, trajectory(by_hand, 20))


def test_any_base_with_any_rule() -> None:
    rule = TrustedMoMo(0.1, rate=0.2)
    kind = MoMoWrapper.of(NAdam, rule, lr=100.0, weight_decay=0.1)

    def by_hand(params: Any) -> Optimizer:
        return MoMoWrapper(NAdam(params, lr=100.0, weight_decay=0.1), TrustedMoMo(0.1, rate=0.2))

    class Stated(MoMoOptimizer, base=NAdam, rule=rule):
        """The same."""

    rule.rate = 0.9  # of no account to the classes
    assert "rate=0.2" in repr(kind)
    assert vars(Stated(Problem().params).rule) == vars(TrustedMoMo(0.1, rate=0.2))
    assert torch.equal(trajectory(kind, 20), trajectory(by_hand, 20))
    one, other = kind(Problem().params), kind(Problem().params)
    one.rule.lower_bound = 0.5  # nor to another optimizer
    assert other.rule.lower_bound == 0.1
    bounded = kind(Problem().params, lower_bound=-1.0)  # the other settings stay
    assert vars(bounded.rule) == vars(TrustedMoMo(-1.0, rate=0.2))
    own = MoMoStar(0.2)
    assert kind(Problem().params, rule=own).rule is own
    with_bound = MoMoWrapper.of(NAdam, lower_bound=0.2)(Problem().params)
    assert vars(with_bound.rule) == vars(MoMo(0.2))


def test_arguments_take_precedence_over_the_defaults_of_the_class() -> None:
    params = Problem().params
    assert TrustedAdamW(params, lr=1.0).defaults["lr"] == 1.0
    assert TrustedAdamW(params, 1.0, (0.8, 0.9)).defaults["betas"] == (0.8, 0.9)
    assert TrustedSGD(params=params, momentum=0.5).defaults["momentum"] == 0.5
    assert ByStatement(params).nonfinite == "skip"
    assert ByStatement(params, nonfinite="raise").nonfinite == "raise"
    groups: list[dict[str, Any]] = [{"params": params[:2], "lr": 2.0}, {"params": params[2:]}]
    assert [group["lr"] for group in TrustedAdamW(groups).param_groups] == [2.0, 100.0]


@needs_torch(2, 6, "optimizers take named parameters")
def test_parameters_in_each_form() -> None:
    model = nn.Linear(2, 1)
    weight, bias = model.parameters()
    named = TrustedAdamW(model.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    own = [OfModel(model), OfModelByStatement(model)]
    assert [optimizer.defaults["lr"] for optimizer in own] == [1.0, 1.0]
    for optimizer in (TrustedAdamW(model.parameters()), named, *own):
        assert optimizer.param_groups[0]["params"][0] is weight
        assert optimizer.param_groups[0]["params"][1] is bias


@by_name
def test_classes_are_pickled_and_copied_as_classes(
    kind: By, monkeypatch: pytest.MonkeyPatch
) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(kind, protocol)) is kind
    assert copy.copy(kind) is kind
    assert copy.deepcopy({"optimizer": kind})["optimizer"] is kind
    written = pickle.dumps(kind)
    monkeypatch.setattr(classes, "_classes", {})  # as in another process
    again = pickle.loads(written)
    assert repr(again) == repr(kind)
    assert again.__name__ == kind.__name__
    assert pickle.loads(written) is again
    assert torch.equal(trajectory(again, 5), trajectory(kind, 5))


def test_the_same_arguments_give_the_same_class() -> None:
    assert made() is made()
    assert MoMoWrapper.of(NAdam) is MoMoWrapper.of(NAdam, MoMo(0)) is not MoMoWrapper.of(Adam)
    assert MoMoWrapper.of(NAdam, lower_bound=1.0) is MoMoWrapper.of(NAdam, MoMo(1.0))
    assert MoMoWrapper.of(NAdam, MoMo(1.0)) is not MoMoWrapper.of(NAdam, MoMoStar(1.0))
    assert MoMoWrapper.of(NAdam, lr=1) is not MoMoWrapper.of(NAdam, lr=True)
    # Without a hash there is a new class each time, which can still be pickled.
    kind = MoMoWrapper.of(NAdam, betas=[0.8, 0.9])
    again = pickle.loads(pickle.dumps(kind))
    assert again(Problem().params).defaults["betas"] == [0.8, 0.9]
    scheduled = MoMoWrapper.of(NAdam, ScheduledBound(LinearSchedule(2.0, 1.0, 10)))
    assert repr(pickle.loads(pickle.dumps(scheduled))) == repr(scheduled)


@by_name
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_an_optimizer_go_on_bit_for_bit(kind: By, way: Callable[[Any], Any]) -> None:
    problem = Problem()
    optimizer = kind(problem.params)
    for _ in range(5):
        take_step(optimizer, problem.gradients())
    copied = way((optimizer, problem))
    for taken, of_problem in ((optimizer, problem), copied):
        assert type(taken) is kind
        of_problem.params = taken.param_groups[0]["params"]
        for _ in range(5):
            take_step(taken, of_problem.gradients())
    assert torch.equal(flat(problem.params), flat(copied[1].params))
    assert torch.equal(last_step(optimizer).theta, last_step(copied[0]).theta)


@by_name
def test_state_dicts_are_those_of_the_wrapper(kind: By) -> None:
    problem = Problem()
    optimizer = kind(problem.params)
    for _ in range(5):
        take_step(optimizer, problem.gradients())
    state = copy.deepcopy(optimizer.state_dict())
    by_hand = MoMoWrapper(type(optimizer.base)(problem.params), copy.copy(optimizer.rule))  # type: ignore[call-arg]
    by_hand.load_state_dict(state)
    for given in (state, by_hand.state_dict()):
        fresh = kind(problem.params)
        fresh.load_state_dict(given)
        assert str(fresh.state_dict()) == str(by_hand.state_dict())


@by_name
def test_schedulers_and_further_groups(kind: By) -> None:
    problem = Problem()
    optimizer = kind(problem.params[:2], lr=1.0)
    optimizer.add_param_group({"params": problem.params[2:]})
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    take_step(optimizer, problem.gradients())
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


@by_name
def test_signature(kind: By) -> None:
    """That of the base, with the defaults of the class, and then that of the wrapper."""
    base = type(kind(Problem().params).base)
    bare, given = inspect.signature(base).parameters, inspect.signature(kind).parameters
    assert list(given) == [*bare, *OWN]
    of_wrapper = inspect.signature(MoMoWrapper).parameters
    defaults = {"lr": 100.0, "momentum": 0.9, "nonfinite": "skip"}
    for name, parameter in given.items():
        if name in bare:
            assert parameter.annotation == bare[name].annotation
            assert parameter.kind == bare[name].kind
        else:
            assert parameter.kind is parameter.KEYWORD_ONLY
        usual = (bare if name in bare else of_wrapper).get(name, of_wrapper["rule"]).default
        assert parameter.default in (usual, defaults.get(name, usual))
    types = get_type_hints(kind.__init__)
    assert types["lower_bound"] == float | None
    assert types["rule"] == StepRule | None
    assert inspect.signature(kind.__init__).parameters.keys() == {"self", *given}


def test_default_learning_rates() -> None:
    for kind, (base, _, defaults) in READY.items():
        default = inspect.signature(kind).parameters["lr"].default
        assert default == defaults.get("lr", inspect.signature(base).parameters["lr"].default)


@needs_torch(2, 7, "Adam(decoupled_weight_decay=...)")
@pytest.mark.parametrize("kind", READY, ids=lambda kind: kind.__name__)
def test_static_types_name_the_same_settings(kind: By) -> None:
    base = READY[kind][0]
    settings = getattr(optim, f"{base.__name__}Settings").__annotations__
    assert set(settings) == set(inspect.signature(kind).parameters) - {"params"}


def test_all_ready_made_classes_are_exported_and_documented() -> None:
    assert {getattr(momo_wrap.optim, name) for name in optim.__all__} == {*READY, MoMoOptimizer}
    for kind in CLASSES:
        assert kind.__doc__
        assert kind.__doc__ != MoMoOptimizer.__doc__


def test_names_and_prints() -> None:
    assert repr(TrustedAdamW) == "<class 'momo_wrap.optim.TrustedAdamW'>"
    assert repr(MoMoAdam(Problem().params)).startswith("MoMoAdam(rule=MoMo(lower_bound=0.0), ")
    assert repr(TrustedAdamW(Problem().params)).endswith("    weight_decay: 0.01\n))")
    assert "momo_" not in repr(TrustedAdamW(Problem().params))
    kind = MoMoWrapper.of(NAdam, MoMoStar(0.1), lr=1.0)
    assert kind.__name__ == "MoMoStarNAdam"
    assert repr(kind) == "MoMoWrapper.of(torch.optim.NAdam, MoMoStar(lower_bound=0.1), lr=1.0)"
    names = {"MoMoWrapper": MoMoWrapper, "torch": torch, "MoMoStar": MoMoStar}
    assert eval(repr(kind), names) is kind
    assert repr(MoMoWrapper.of(Open)).startswith("MoMoWrapper.of(tests.test_optim.Open, ")
    assert MoMoWrapper.of(AdamW).__name__ == "MoMoAdamW"
    assert MoMoWrapper.of(AdamW, TrustedMoMo()).__name__ == "TrustedAdamW"


class Counting(MoMoWrapper):
    """A wrapper with something of its own."""

    count = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.count += 1
        super().zero_grad(set_to_none)


def test_subclasses() -> None:
    params = Problem().params
    counting = Counting.of(AdamW)
    optimizer = counting(params)
    optimizer.zero_grad()
    assert isinstance(optimizer, Counting)
    assert optimizer.count == 1
    assert pickle.loads(pickle.dumps(counting)) is counting
    assert counting is not MoMoWrapper.of(AdamW)
    # Lightning makes a class of an optimizer's by such a call.
    light: Any = type("LightningOptimizer", (object,), {})
    for kind in (TrustedAdamW, made()):
        mixed: Any = type(f"Lightning{kind.__name__}", (light, kind), {})
        assert repr(mixed).startswith("<class '")
        assert mixed(params).defaults["lr"] == 100.0


class Open(SGD):
    """Takes what it does not name."""

    def __init__(self, params: Any, lr: float = 0.1, **settings: Any) -> None:
        super().__init__(params, lr=lr, **settings)


class Shared(SGD):
    """Has an argument that is also one of the wrapper's."""

    def __init__(self, params: Any, compiled: bool = False) -> None:
        super().__init__(params)


def test_a_learning_rate_that_is_a_tensor_is_of_one_optimizer_alone() -> None:
    """Schedulers write into it."""
    lr = torch.tensor(0.1)
    made = MoMoWrapper.of(SGD, lr=lr)
    one, other = made(Problem().params), made(Problem().params)
    one.param_groups[0]["lr"].fill_(5.0)
    assert (float(other.param_groups[0]["lr"]), float(lr)) == pytest.approx((0.1, 0.1))
    given = made(Problem().params, lr=lr)
    assert given.param_groups[0]["lr"] is lr


@pytest.mark.filterwarnings("ignore:MoMoWrapper uses ProposingAdapter")
def test_a_base_whose_later_arguments_have_no_default() -> None:
    """They are by keyword, as Python has none without a default after one with."""

    class Needy(SGD):
        def __init__(self, params: Any, lr: float, momentum: float, dampening: float = 0.0) -> None:
            super().__init__(params, lr, momentum, dampening)

    made = MoMoWrapper.of(Needy, lr=0.1)
    group = made(Problem().params, momentum=0.9, dampening=0.5).param_groups[0]
    assert (group["lr"], group["momentum"], group["dampening"]) == (0.1, 0.9, 0.5)
    with pytest.raises(TypeError, match=r"missing a required .*argument: 'momentum'"):
        made(Problem().params, 0.2)
    with pytest.raises(TypeError, match="too many positional arguments"):
        made(Problem().params, 0.2, 0.9)


@pytest.mark.filterwarnings("ignore:MoMoWrapper uses ProposingAdapter")
def test_base_that_takes_any_argument() -> None:
    kind = MoMoWrapper.of(Open, momentum=0.9)
    assert list(inspect.signature(kind).parameters) == ["params", "lr", *OWN, "settings"]
    optimizer = kind(Problem().params, dampening=0.5, nonfinite="skip")
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["dampening"] == 0.5
    assert optimizer.nonfinite == "skip"
    assert kind(Problem().params, momentum=0.5).defaults["momentum"] == 0.5


X = [torch.ones(2, requires_grad=True)]

ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no parameters": (
        lambda: TrustedAdamW(),  # type: ignore[call-arg]
        TypeError,
        "TrustedAdamW missing a required argument: 'params'. Its arguments are: params, lr, betas,",
    ),
    "unknown argument": (
        lambda: MoMoSGD(X, lower_bond=1.0),  # type: ignore[call-arg]
        TypeError,
        "MoMoSGD got an unexpected keyword argument 'lower_bond'. Its arguments are: params, lr, "
        "momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused, "
        "rule, lower_bound,",
    ),
    "an argument of another base": (
        lambda: made()(X, momentum=0.9),
        TypeError,
        "TrustedNAdam got an unexpected keyword argument 'momentum'",
    ),
    "unknown argument of an open base": (
        lambda: MoMoWrapper.of(Open)(X, lower_bond=1.0),
        TypeError,
        "SGD.__init__() got an unexpected keyword argument 'lower_bond'",
    ),
    "rule and bound": (
        lambda: TrustedAdamW(X, rule=MoMoStar(), lower_bound=1.0),
        TypeError,
        "TrustedAdamW got rule and lower_bound, expected one of them. Put the bound into the rule: "
        "rule=MoMoStar(lower_bound=1.0)",
    ),
    "rule and bound of a class": (
        lambda: MoMoWrapper.of(AdamW, MoMo(), lower_bound=1.0),
        TypeError,
        "MoMoWrapper.of got rule and lower_bound, expected one of them",
    ),
    "rule is a class": (
        lambda: TrustedAdamW(X, rule=MoMo),  # type: ignore[arg-type]
        TypeError,
        "rule must be a StepRule, got <class",
    ),
    "rule of a class is a class": (
        lambda: MoMoWrapper.of(AdamW, MoMo),  # type: ignore[arg-type]
        TypeError,
        "rule must be a StepRule, got <class",
    ),
    "bound is text": (
        lambda: TrustedAdamW(X, lower_bound="1"),  # type: ignore[arg-type]
        TypeError,
        "lower_bound must be a Python number, got str. Write TrustedMoMo(lower_bound=0.0)",
    ),
    "bound is NaN": (
        lambda: MoMoWrapper.of(AdamW, lower_bound=math.nan),
        ValueError,
        "MoMo got lower_bound=nan",
    ),
    "a value that the wrapper refuses": (
        lambda: TrustedAdamW(X, nonfinite="skp"),  # type: ignore[arg-type]
        ValueError,
        "nonfinite must be 'propagate', 'skip' or 'raise', got 'skp'",
    ),
    "a value that the base refuses": (
        lambda: TrustedAdamW(X, betas=(2.0, 0.9)),
        ValueError,
        "Invalid beta parameter",
    ),
    "an optimizer": (
        lambda: MoMoWrapper.of(SGD(X)),  # type: ignore[arg-type]
        TypeError,
        "MoMoWrapper.of expects an optimizer class, got SGD (",
    ),
    "no optimizer": (
        lambda: MoMoWrapper.of(nn.Linear),  # type: ignore[arg-type]
        TypeError,
        "expects an optimizer class, got <class 'torch.nn.modules.linear.Linear'>. Write "
        "MoMoWrapper.of(torch.optim.AdamW); for an existing optimizer, "
        "MoMoWrapper(optimizer).",
    ),
    "a class of wrapped ones": (
        lambda: MoMoWrapper.of(MoMoAdamW),
        TypeError,
        "MoMoWrapper.of got MoMoAdamW, whose optimizers are already wrapped",
    ),
    "unknown default": (
        lambda: MoMoWrapper.of(AdamW, momentum=0.9),
        TypeError,
        "Neither AdamW nor MoMoWrapper has an argument 'momentum', got the default 0.9 for it. "
        "Their arguments are: lr, betas,",
    ),
    "parameters as a default": (
        lambda: MoMoWrapper.of(AdamW, params=X),
        TypeError,
        "has an argument 'params', got the default",
    ),
    "an argument of both": (
        lambda: MoMoWrapper.of(Shared),
        TypeError,
        "Shared and MoMoWrapper both have arguments named ['compiled'], which is "
        "ambiguous. Write MoMoWrapper(Shared(params, ...)).",
    ),
    "a base that can't be wrapped": (
        lambda: MoMoWrapper.of(torch.optim.LBFGS)(X),
        TypeError,
        "can't wrap LBFGS",
    ),
    "no base": (
        lambda: MoMoOptimizer(X),
        TypeError,
        "MoMoOptimizer has no base. Write momo_wrap.optim.MoMoAdamW(params), or MoMoWrapper.of(",
    ),
    "settings without a base": (
        lambda: type("Mine", (MoMoOptimizer,), {}, lr=1.0),
        TypeError,
        "Mine has settings for a base, but no base. Write class Mine(MoMoOptimizer, base=torch.",
    ),
    "a wrapper that is given parameters": (
        lambda: MoMoWrapper(X, lr=1e-2),  # type: ignore[arg-type]
        TypeError,
        "MoMoWrapper takes no lr; it is an argument of the base. Write MoMoWrapper(torch.optim."
        "AdamW(model.parameters(), lr=...)); the class that takes it is momo_wrap.optim.MoMoAdamW, "
        "or MoMoWrapper.of(torch.optim.AdamW).",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def regressor() -> Any:
    """An estimator of scikit-learn's kind, that takes an optimizer's class and its arguments."""
    base = pytest.importorskip("sklearn.base", reason="the examples extra is not installed")

    class Regressor(base.BaseEstimator):  # type: ignore[misc,name-defined]
        def __init__(self, optimizer: By = MoMoAdamW, lr: float = 1.0, lower_bound: float = 0.0):
            self.optimizer, self.lr, self.lower_bound = optimizer, lr, lower_bound

        def fit(self, inputs: Any, targets: Any) -> Any:
            inputs, targets = torch.as_tensor(inputs), torch.as_tensor(targets)
            self.weight_ = torch.zeros(inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
            settings = {"lr": self.lr, "lower_bound": self.lower_bound}
            self.optimizer_ = self.optimizer([self.weight_], **settings)
            for _ in range(20):
                self.optimizer_.zero_grad()
                loss = self._loss(inputs, targets)
                loss.backward()
                self.optimizer_.step(loss=loss)
            return self

        def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return (inputs @ self.weight_ - targets).square().mean()

        def score(self, inputs: Any, targets: Any) -> float:
            return -float(self._loss(torch.as_tensor(inputs), torch.as_tensor(targets)).detach())

    return Regressor


def test_scikit_learn_clones_and_sweeps() -> None:
    kind = regressor()
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator).numpy()
    targets = inputs.sum(axis=1)
    grid = {
        "optimizer": [TrustedAdamW, made()],
        "lr": [1e-6, 100.0],
        "lower_bound": [0.0, 10.0],
    }
    estimator = kind(optimizer=made())
    assert clone(estimator).optimizer is made()
    assert "MoMoWrapper.of(torch.optim.NAdam" in repr(estimator)
    search = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(inputs, targets)
    # Neither a cap that holds everything back, nor a bound above all losses, is any good.
    assert search.best_params_["lr"] == 100.0
    assert search.best_params_["lower_bound"] == 0.0
    assert type(search.best_estimator_.optimizer_) is search.best_params_["optimizer"]
