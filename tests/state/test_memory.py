"""The averages are the wrapper's own, and go where the base's buffers go."""

from __future__ import annotations

import collections
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, StepRule, TrustedMoMo
from momo_wrap.testing.setting import Soft
from tests.problems import Problem, flat, last_step

Make = Callable[[Any], MoMoWrapper]
WRAPPED: dict[str, Make] = {
    "SGD": lambda p: MoMoWrapper(SGD(p, lr=0.05, momentum=0.9), Soft()),
    "AdamW": lambda p: MoMoWrapper(AdamW(p, lr=0.1), TrustedMoMo(start=0.5)),
    "proposed": lambda p: MoMoWrapper(
        SGD(p, lr=0.05, momentum=0.9), MoMoStar(), adapter=ProposingAdapter()
    ),
}
every_wrapped = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)


def train(problem: Problem, optimizer: MoMoWrapper, steps: int) -> list[float]:
    """Take steps; return their θ."""
    thetas = []
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
        thetas.append(float(last_step(optimizer).theta))
    return thetas


def halves(problem: Problem) -> list[dict[str, Any]]:
    return [{"params": problem.params[:2]}, {"params": problem.params[2:]}]


def trained(make: Make, steps: int = 5) -> tuple[Problem, MoMoWrapper]:
    problem = Problem()
    optimizer = make(halves(problem))
    train(problem, optimizer, steps)
    return problem, optimizer


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [t for v in values for t in tensors_in(v)] if isinstance(value, (dict, list)) else []


@every_wrapped
def test_groups_hold_no_tensors_of_the_wrapper(make: Make) -> None:
    problem = Problem()
    optimizer = make(halves(problem))
    for _ in range(2):
        for group in optimizer.param_groups:
            assert not [v for k, v in group.items() if k != "params" and isinstance(v, Tensor)]
        train(problem, optimizer, 2)
        optimizer.load_state_dict(optimizer.state_dict())
    assert tensors_in([{**group, "params": []} for group in optimizer.param_groups]) == []


@every_wrapped
def test_exported_values_are_numbers(make: Make) -> None:
    """Which JSON can take, and no later step changes."""
    problem, optimizer = trained(make)
    saved = optimizer.state_dict()["param_groups"]
    exported = [v for group in saved for n, v in group.items() if n.startswith("momo_")]
    assert len(exported) >= 6
    assert all(type(value) in (float, int) for value in exported)
    before = json.dumps(saved)
    train(problem, optimizer, 2)
    assert json.dumps(saved) == before != json.dumps(optimizer.state_dict()["param_groups"])


@every_wrapped
def test_saving_changes_nothing(make: Make) -> None:
    (watched, optimizer), (undisturbed, other) = trained(make), trained(make)
    for _ in range(4):
        optimizer.state_dict()
        assert train(watched, optimizer, 1) == train(undisturbed, other, 1)
    assert torch.equal(flat(watched.params), flat(undisturbed.params))


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("rule", [MoMo, MoMoStar, TrustedMoMo], ids=lambda rule: str(rule.__name__))
def test_one_list_of_groups_for_two_runs(rule: type[StepRule], in_turn: bool) -> None:
    """As for folds and restarts: AdamW at lr 100 with its decay to 0."""

    def decayed(problem: Problem, groups: Any, last: MoMoWrapper | None = None) -> list[float]:
        for group in groups:
            group["lr"] = 100.0
        optimizer = MoMoWrapper(AdamW(groups, lr=100.0), rule())
        assert last is None or optimizer.last_step is None
        losses = []
        for step in range(12):
            for group in optimizer.param_groups:
                group["lr"] = 100.0 * (1 - step / 12)
            losses.append(float(optimizer.step(loss=problem.gradients()) or 0.0))
        if in_turn:
            optimizer.state_dict()
        return losses

    problem = Problem()
    groups = halves(problem)
    start = [param.detach().clone() for param in problem.params]
    generator = problem.generator.get_state()
    first = decayed(problem, groups)
    with torch.no_grad():
        for param, value in zip(problem.params, start, strict=True):
            param.copy_(value)
    problem.generator.set_state(generator)
    assert decayed(problem, groups) == first


def test_two_wrappers_of_one_list_of_groups_at_once() -> None:
    """A second wrapper does not disturb the first, nor does its state dict have the first's."""
    (problem, optimizer), (undisturbed, other) = trained(WRAPPED["SGD"]), trained(WRAPPED["SGD"])
    second = MoMoWrapper(SGD(optimizer.param_groups, lr=0.05, momentum=0.9), TrustedMoMo())
    sums = [float(group["momo_weight_sum"]) for group in second.state_dict()["param_groups"]]
    assert sums == [0.0, 0.0]
    assert train(problem, optimizer, 3) == train(undisturbed, other, 3)


def empty_state(optimizer: MoMoWrapper) -> None:
    optimizer.state = collections.defaultdict(dict)


def clear_state(optimizer: MoMoWrapper) -> None:
    optimizer.state.clear()


def clear_state_of_the_base(optimizer: MoMoWrapper) -> None:
    optimizer.base.state = collections.defaultdict(dict)


def clear_entries(optimizer: MoMoWrapper) -> None:
    for entry in optimizer.state.values():
        entry.clear()


RESETS = [empty_state, clear_state, clear_state_of_the_base, clear_entries]
every_reset = pytest.mark.parametrize("reset", RESETS, ids=[reset.__name__ for reset in RESETS])


def steps_like_a_fresh_one(problem: Problem, optimizer: MoMoWrapper, make: Make) -> None:
    """Require that a wrapper whose state is gone takes the steps of a fresh one."""
    other = Problem()
    train(other, make(halves(other)), 0)
    other.generator.set_state(problem.generator.get_state())
    with torch.no_grad():
        for param, value in zip(other.params, problem.params, strict=True):
            param.copy_(value)
    fresh = make(halves(other))
    assert train(problem, optimizer, 5) == train(other, fresh, 5)
    assert torch.equal(flat(problem.params), flat(other.params))


@every_wrapped
@every_reset
def test_without_its_buffers_the_model_restarts(make: Make, reset: Any) -> None:
    problem, optimizer = trained(make)
    reset(optimizer)
    steps_like_a_fresh_one(problem, optimizer, make)


@every_wrapped
def test_a_reset_is_in_the_state_dict(make: Make) -> None:
    problem, optimizer = trained(make)
    empty_state(optimizer)
    for group in optimizer.state_dict()["param_groups"]:
        assert float(group["momo_weight_sum"]) == 0.0
    steps_like_a_fresh_one(problem, optimizer, make)


@every_wrapped
@every_reset
def test_a_reset_after_loading(make: Make, reset: Any) -> None:
    """Before any step has been taken, as for a finetuning that begins with old settings only."""
    problem, optimizer = trained(make)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    reset(optimizer)
    steps_like_a_fresh_one(problem, optimizer, make)


@every_wrapped
def test_a_reset_of_a_copy(make: Make) -> None:
    problem, optimizer = trained(make)
    copied_problem, copied = copy.deepcopy((problem, optimizer))
    copied_problem.params = [p for group in copied.param_groups for p in group["params"]]
    empty_state(copied)
    steps_like_a_fresh_one(copied_problem, copied, make)


@every_wrapped
def test_a_reset_with_a_group_that_never_had_gradients(make: Make) -> None:
    """It has no buffers to lose, and keeps no average either."""

    def gradients(problem: Problem) -> Tensor:
        loss = problem.gradients()
        for param in problem.params[2:]:
            param.grad = None
        return loss

    def steps(problem: Problem, optimizer: MoMoWrapper, count: int) -> list[float]:
        thetas = []
        for _ in range(count):
            optimizer.step(loss=gradients(problem))
            thetas.append(float(last_step(optimizer).theta))
        return thetas

    problem = Problem()
    optimizer = make(halves(problem))
    steps(problem, optimizer, 5)
    empty_state(optimizer)
    other = copy.deepcopy(problem)
    fresh = make(halves(other))
    assert steps(problem, optimizer, 4) == steps(other, fresh, 4)


@every_wrapped
def test_a_group_without_gradients_is_no_reset(make: Make) -> None:
    """The other continues as if it were alone."""
    problem, alone = Problem(), Problem()
    optimizer, other = make(halves(problem)), make(alone.params[:2])
    for _ in range(6):
        losses = []
        for its in (problem, alone):
            losses.append(its.gradients())
            for param in its.params[2:]:
                param.grad = None
        optimizer.step(loss=losses[0])
        other.step(loss=losses[1])
        theta, expected = (float(last_step(o).theta) for o in (optimizer, other))
        assert theta == pytest.approx(expected, rel=1e-9)
        sums = [
            [float(group[f"momo_{name}"]) for name in ("loss_sum", "weight_sum", "displacement")]
            for group in (o.state_dict()["param_groups"][0] for o in (optimizer, other))
        ]
        assert sums[0] == pytest.approx(sums[1], rel=1e-9)


@pytest.mark.parametrize("rule", [MoMo(), TrustedMoMo()], ids=["MoMo", "TrustedMoMo"])
def test_the_loss_does_not_explode_after_a_reset(rule: StepRule) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params, lr=100.0), rule)
    losses = []
    for step in range(60):
        if step == 30:
            empty_state(optimizer)
        losses.append(float(optimizer.step(loss=problem.gradients()) or 0.0))
    assert max(losses[31:]) < 2 * max(losses[20:31])


def test_one_of_two_groups_is_cleared() -> None:
    """Its averages restart, with the level of the other's, which continues."""
    problem, optimizer = trained(WRAPPED["SGD"], 6)
    for param in problem.params[2:]:
        optimizer.state.pop(param)
    before = optimizer.state_dict()["param_groups"]
    optimizer.step(loss=problem.gradients())
    after = optimizer.state_dict()["param_groups"]
    weights = [float(group["momo_weight_sum"]) for group in after]
    assert weights[0] == pytest.approx(0.9 * float(before[0]["momo_weight_sum"]) + 1)
    assert weights[1] == 1.0
    levels = [float(g["momo_loss_sum"] / g["momo_loss_weight_sum"]) for g in after]
    assert levels[0] == pytest.approx(levels[1], rel=1e-12)
    assert 0 < float(last_step(optimizer).theta) < 1


@every_wrapped
def test_other_containers_of_the_same_tensors_are_no_reset(make: Make) -> None:
    (problem, optimizer), (undisturbed, other) = trained(make), trained(make)
    for change in range(3):
        state = optimizer.base.state
        if change == 0:
            for param in list(state):
                state[param] = dict(state[param])
        elif change == 1:
            optimizer.state = collections.defaultdict(dict, state)
        else:
            optimizer.base.state = collections.defaultdict(
                dict, {param: dict(entry) for param, entry in state.items()}
            )
        assert train(problem, optimizer, 2) == train(undisturbed, other, 2)


@every_wrapped
def test_other_tensors_in_the_same_containers_are_no_reset(make: Make) -> None:
    (problem, optimizer), (undisturbed, other) = trained(make), trained(make)
    for entry in optimizer.base.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                entry[name] = value.clone()
    assert train(problem, optimizer, 2) == train(undisturbed, other, 2)


def test_other_containers_of_other_tensors_are_a_reset() -> None:
    """The base's buffers are new; the losses that belong to them are unknown."""
    problem, optimizer = trained(WRAPPED["SGD"])
    state = optimizer.base.state
    for param in list(state):
        state[param] = {"momentum_buffer": torch.ones_like(param)}
    for group in optimizer.state_dict()["param_groups"]:
        assert float(group["momo_weight_sum"]) == -1.0  # a history
    optimizer.step(loss=problem.gradients())
    for group in optimizer.state_dict()["param_groups"]:
        assert float(group["momo_weight_sum"]) == pytest.approx(10.0)


class Functional(SGD):
    """Recreates its state in every step, including the container."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    last = self.state[param].get("average", torch.zeros_like(param))
                    new = group["momentum"] * last + param.grad
                    self.state[param] = {"average": new}
                    param.data.sub_(group["lr"] * new)


def test_a_base_that_makes_its_state_anew_in_every_step() -> None:
    problem = Problem()
    base = Functional(problem.params, lr=0.05, momentum=0.9)
    adapter = ProposingAdapter("average", averaging=lambda group, _: _sgd_averaging(group))
    optimizer = MoMoWrapper(base, Soft(), adapter=adapter)
    weight_sum = 0.0
    for _ in range(5):
        optimizer.step(loss=problem.gradients())
        weight_sum = 0.9 * weight_sum + 1.0
        (group,) = optimizer.state_dict()["param_groups"]
        assert float(group["momo_weight_sum"]) == pytest.approx(weight_sum)


def _sgd_averaging(group: dict[str, Any]) -> Any:
    from momo_wrap import Averaging

    return Averaging(decay=group["momentum"], weight=1.0)


@every_wrapped
def test_copies_of_the_groups_are_the_groups(make: Make) -> None:
    """Some tools put copies of the dicts in their place; parameters and buffers stay."""
    (problem, optimizer), (undisturbed, other) = trained(make), trained(make)
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    assert train(problem, optimizer, 3) == train(undisturbed, other, 3)


@dataclass(frozen=True)
class File:
    """A state dict in the format of version 0.1.0, and the steps that version took from there."""

    make: Callable[[Any], Optimizer]
    rule: Callable[[], StepRule]
    params: list[list[float]]
    state: dict[int, dict[str, Any]]
    memory: list[dict[str, float]]
    thetas: list[float]
    end: list[list[float]]


def sgd(groups: Any) -> Optimizer:
    return SGD(groups, lr=0.1, momentum=0.9)


def adamw(groups: Any) -> Optimizer:
    return AdamW(groups, lr=0.5)


FILES = {
    "SGD": File(
        sgd,
        MoMo,
        params=[[1.2708204938288137, -0.9295952817822412], [-0.3280012891543506]],
        state={
            0: {"momentum_buffer": [1.787133165299359, -17.00627192453994]},
            1: {"momentum_buffer": [2.37277441882485]},
        },
        memory=[
            {
                "momo_loss_sum": 17.301802525174693,
                "momo_weight_sum": 3.439,
                "momo_displacement": -13.707809375081084,
            },
            {
                "momo_loss_sum": 17.301802525174693,
                "momo_weight_sum": 3.439,
                "momo_displacement": -3.5939931500936066,
            },
        ],
        thetas=[
            0.11143833690693614,
            0.09802253994104156,
            0.06677497393773357,
            0.042885769307340324,
            0.02936253157727606,
        ],
        end=[[0.9234995905027834, -0.49908160565169624], [-0.039270109060323515]],
    ),
    "AdamW": File(
        adamw,
        TrustedMoMo,
        params=[[1.1245001326562574, -1.871297464394305], [0.44934091792848596]],
        state={
            0: {
                "step": 4.0,
                "exp_avg": [-1.5427187581517867, -3.9155808521290187],
                "exp_avg_sq": [0.08240612883234275, 0.5230860145647238],
            },
            1: {
                "step": 4.0,
                "exp_avg": [1.9030615437956506],
                "exp_avg_sq": [0.12442380286840224],
            },
        },
        memory=[
            {
                "momo_loss_sum": 3.4734624865482466,
                "momo_weight_sum": 0.3438999999999999,
                "momo_displacement": -0.43841008412393934,
                "momo_rule_trusted": 0.03536124744412526,
                "momo_rule_weight": 0.1426250000000001,
                "momo_rule_observed": 0.11727834413083443,
                "momo_rule_predicted": 0.12198654619518534,
                "momo_rule_observed_square": 0.10353898281695012,
                "momo_rule_last_mean_loss": 10.10021077798269,
                "momo_rule_foretold": 8.64812447351624,
                "momo_rule_last_step_size": 0.03536124744412526,
                "momo_rule_last_lr": 0.5,
            },
            {
                "momo_loss_sum": 3.4734624865482466,
                "momo_weight_sum": 0.3438999999999999,
                "momo_displacement": -0.06096239598207223,
            },
        ],
        # The step size that was trusted, longer by e^0.03 as losses fall; 0.1.0 went on otherwise.
        thetas=[0.03536124744412526 * math.exp(0.03) / 0.5],
        end=[],
    ),
    "SGD with a history": File(
        sgd,
        MoMo,
        params=[[0.13799999999999998, -0.08799999999999998], [0.8640000000000002]],
        state={
            0: {"momentum_buffer": [11.02, 0.4800000000000013]},
            1: {"momentum_buffer": [-7.620000000000001]},
        },
        memory=[{"momo_loss_sum": 0.0, "momo_weight_sum": -1.0, "momo_displacement": 0.0}] * 2,
        thetas=[1.0, 0.8910787962121146, 0.2443337930062999, 1.0, 0.7780445399659256],
        end=[[-0.381512549215151, 0.6687293735539873], [0.35784890181230716]],
    ),
}


def of_file(file: File) -> tuple[list[Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Return the parameters of a file, groups of them, and its state dict."""
    params = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in file.params]
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}]
    saved = file.make(groups).state_dict()
    for group, memory in zip(saved["param_groups"], file.memory, strict=True):
        group.update({k: torch.tensor(v, dtype=torch.float64) for k, v in memory.items()})
    saved["state"] = {
        index: {
            name: torch.tensor(v, dtype=torch.float32 if name == "step" else torch.float64)
            for name, v in entry.items()
        }
        for index, entry in file.state.items()
    }
    return params, groups, saved


def gradients_of_file(params: list[Tensor]) -> Tensor:
    x, y = params
    curved = torch.tensor([1.0, 3.0], dtype=x.dtype)
    loss = 0.5 * (x * x * curved).sum() + 2 * (y - x.sum()).square().sum()
    for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        param.grad = grad
    return loss.detach()


def goes_on(file: File, params: list[Tensor], optimizer: MoMoWrapper) -> None:
    for theta in file.thetas:
        optimizer.step(loss=gradients_of_file(params))
        assert float(last_step(optimizer).theta) == pytest.approx(theta, rel=1e-9)
    for param, end in zip(params, file.end, strict=bool(file.end)):
        assert param.tolist() == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_files_of_version_0_1_0_are_loaded(file: File) -> None:
    params, groups, saved = of_file(file)
    optimizer = MoMoWrapper(file.make(groups), file.rule())
    optimizer.load_state_dict(saved)
    goes_on(file, params, optimizer)


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_files_of_version_0_1_0_are_loaded_into_the_base(file: File) -> None:
    """Before it is wrapped, and after."""
    for first in (True, False):
        params, groups, saved = of_file(file)
        base = file.make(groups)
        if first:
            base.load_state_dict(saved)
            optimizer = MoMoWrapper(base, file.rule())
        else:
            optimizer = MoMoWrapper(base, file.rule())
            base.load_state_dict(saved)
        goes_on(file, params, optimizer)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_the_state_dict_of_a_bare_optimizer(make: Callable[[Any], Optimizer]) -> None:
    """The model of the loss starts as with a base that has a history."""
    problem = Problem()
    bare = make(halves(problem))
    for _ in range(3):
        problem.gradients()
        bare.step()
    other = copy.deepcopy(problem)
    optimizer = MoMoWrapper(make(halves(other)), Soft())
    train(other, optimizer, 3)
    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))
    with torch.no_grad():
        for param, value in zip(other.params, problem.params, strict=True):
            param.copy_(value)
    other.generator.set_state(problem.generator.get_state())
    wrapped = MoMoWrapper(bare, Soft())
    assert train(other, optimizer, 3) == train(problem, wrapped, 3)
    bare_again = make(halves(other))
    bare_again.load_state_dict(optimizer.state_dict())
    problem.gradients()
    bare_again.step()


@every_wrapped
@pytest.mark.parametrize("where", ["param_groups", "hook"])
def test_a_load_that_raises_leaves_the_memory_unchanged(make: Make, where: str) -> None:
    (problem, optimizer), (undisturbed, other) = trained(make), trained(make)
    before = str(optimizer.state_dict())
    later = copy.deepcopy(optimizer)
    train(Problem(seed=1), later, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for name, value in group.items():
            if name.startswith("momo_"):
                group[name] = value * 2 + 1
    if where == "hook":

        def fail(_: Optimizer) -> None:
            raise RuntimeError("simulated")

        handle = optimizer.base.register_load_state_dict_post_hook(fail)
        with pytest.raises(RuntimeError, match="simulated"):
            optimizer.load_state_dict(saved)
        handle.remove()
    else:
        saved["param_groups"][-1]["momo_displacement"] = torch.ones(2)
        with pytest.raises(ValueError, match="momo_displacement"):
            optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before
    assert train(problem, optimizer, 3) == train(undisturbed, other, 3)


RULES: dict[str, Callable[[], StepRule]] = {
    "MoMo": MoMo,
    "MoMoStar": MoMoStar,
    "TrustedMoMo": TrustedMoMo,
}


@pytest.mark.parametrize("new", RULES.values(), ids=RULES)
@pytest.mark.parametrize("old", RULES.values(), ids=RULES)
def test_another_rule_leaves_nothing_of_the_old_one(
    old: Callable[[], StepRule], new: Callable[[], StepRule]
) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(halves(problem), lr=0.05, momentum=0.9), old())
    train(problem, optimizer, 4)
    optimizer.rule = new()
    fresh = MoMoWrapper(SGD(halves(Problem()), lr=0.05, momentum=0.9), new())
    for groups, expected in (
        (optimizer.param_groups, fresh.param_groups),
        (optimizer.state_dict()["param_groups"], fresh.state_dict()["param_groups"]),
    ):
        for group, its in zip(groups, expected, strict=True):
            assert set(group) == set(its)
    for name, value in fresh.state_dict()["param_groups"][0].items():
        if name.startswith("momo_rule_"):
            assert optimizer.state_dict()["param_groups"][0][name] == value
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(problem)
    loaded = MoMoWrapper(SGD(halves(other), lr=0.05, momentum=0.9), new())
    loaded.load_state_dict(saved)
    assert train(problem, optimizer, 3) == train(other, loaded, 3)


NONSENSE: list[tuple[str, Any, type[Exception]]] = [
    ("nonfinite", "skp", ValueError),
    ("nonfinite", None, ValueError),
    ("rule", 3, TypeError),
    ("rule", None, TypeError),
    ("rule", MoMo, TypeError),
    ("rule", MoMo(math.inf), ValueError),
    ("compiled", "yes", ValueError),
    ("compiled", 1.5, ValueError),
    ("compiled", None, ValueError),
    ("weight_decay_form", "x", ValueError),
    ("weight_decay_form", 0.1, ValueError),
    ("process_group", "all", Exception),
    ("base", SGD([torch.ones(1, requires_grad=True)], lr=0.1), AttributeError),
    ("adapter", ProposingAdapter(), AttributeError),
    ("last_step", None, AttributeError),
    ("skipped_steps", 3, AttributeError),
]


@pytest.mark.parametrize(("name", "value", "error"), NONSENSE, ids=lambda value: str(value)[:20])
def test_invalid_values_raise_on_assignment(name: str, value: Any, error: type[Exception]) -> None:
    (problem, optimizer), (undisturbed, other) = (trained(WRAPPED["SGD"]) for _ in range(2))
    before = getattr(optimizer, name)
    with pytest.raises(error):
        setattr(optimizer, name, value)
    assert str(getattr(optimizer, name)) == str(before)
    assert train(problem, optimizer, 2) == train(undisturbed, other, 2)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({"lower_bound": 1.5}, "MoMoWrapper(optimizer, MoMo(lower_bound=1.5))"),
        ({"weight_decay": "decoupled"}, "MoMoWrapper(optimizer, weight_decay_form='decoupled')"),
    ],
)
def test_misplaced_arguments_name_their_place(arguments: dict[str, Any], written: str) -> None:
    base = SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    groups = [dict(group) for group in base.param_groups]
    with pytest.raises(TypeError) as caught:
        MoMoWrapper(base, **arguments)
    assert written in str(caught.value)
    assert [dict(group) for group in base.param_groups] == groups


def test_an_invalid_argument_leaves_the_base_unchanged() -> None:
    base = SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    before = [dict(group) for group in base.param_groups]
    for arguments in ({"nonfinite": "skp"}, {"compiled": "yes"}, {"rule": MoMo(math.inf)}):
        with pytest.raises(ValueError, match=r"must be|infinite"):
            MoMoWrapper(base, **arguments)
    assert [dict(group) for group in base.param_groups] == before
