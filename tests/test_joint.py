"""Several optimizers under one model, and groups that average differently."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from momo_wrap import JointOptimizer, MoMo, MoMoStar, MoMoWrapper, ProposingAdapter
from momo_wrap.adapters import SGDAdapter
from momo_wrap.state.loading import with_entries
from tests.problems import Problem, flat, last_step, relative_distance, take_step, trajectory
from tests.reference import AdamBase, Array, ReferenceBlock, ReferenceJointMoMo, SGDBase
from tests.releases import Muon

STEPS = 40

MUON = ProposingAdapter()


def muon_and_adamw(params: list[Tensor], lr: float = 0.02) -> list[Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    matrices = [p for p in params if p.dim() == 2]
    others = [p for p in params if p.dim() != 2]
    return [Muon(matrices, lr=lr, weight_decay=0.0), AdamW(others, lr=lr, weight_decay=0.0)]


def wrapped(params: list[Tensor], bound: float = 0.1, lr: float = 0.02) -> MoMoWrapper:
    return MoMoWrapper(muon_and_adamw(params, lr), MoMo(bound), adapter=[MUON, None])


Pair = tuple[Callable[[list[Any]], Optimizer], Callable[[], SGDBase | AdamBase]]
MOMENTUM: Pair = (lambda p: SGD(p, lr=0.1, momentum=0.9), lambda: SGDBase(0.9))
NESTEROV: Pair = (
    lambda p: SGD(p, lr=0.1, momentum=0.7, nesterov=True),
    lambda: SGDBase(0.7, nesterov=True),
)
DAMPENED: Pair = (
    lambda p: SGD(p, lr=0.1, momentum=0.8, dampening=0.8),
    lambda: SGDBase(0.8, dampening=0.8),
)
ADAM: Pair = (lambda p: Adam(p, lr=0.1, betas=(0.8, 0.9)), lambda: AdamBase(0.8, 0.9))
PLAIN: Pair = (lambda p: SGD(p, lr=0.1), SGDBase)


def numpy_vectors(tensors: list[Tensor]) -> list[Array]:
    return [tensor.detach().reshape(-1).numpy().copy() for tensor in tensors]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "pairs",
    [(MOMENTUM, ADAM, PLAIN, DAMPENED), (ADAM, NESTEROV, ADAM, ADAM), (NESTEROV,) * 4],
    ids=["SGD-Adam-plain-dampened", "Adam-Nesterov", "all alike"],
)
def test_model_is_that_of_the_reference(
    pairs: tuple[Pair, ...], decay: float, scale: float
) -> None:
    """Each parameter has an optimizer of its own."""
    problem = Problem()
    optimizers = [make([param]) for (make, _), param in zip(pairs, problem.params, strict=True)]
    lrs = [scale * lr for lr in (0.1, 0.03, 0.2, 0.05)]
    for optimizer, lr in zip(optimizers, lrs, strict=True):
        optimizer.param_groups[0].update(lr=lr, weight_decay=decay / lr)
    wrapper = MoMoWrapper(optimizers, MoMo(1.0), weight_decay_form="proximal")
    reference = ReferenceJointMoMo(
        [
            ReferenceBlock(x, lr, decay / lr, make_base())
            for x, lr, (_, make_base) in zip(numpy_vectors(problem.params), lrs, pairs, strict=True)
        ],
        lower_bound=1.0,
    )
    cut = 0
    for step in range(STEPS):
        # Both move on from the library's parameters, see test_reference.
        for block, x in zip(reference.blocks, numpy_vectors(problem.params), strict=True):
            np.testing.assert_allclose(block.x, x, rtol=1e-9, atol=1e-11)
            block.x = x
        loss = problem.gradients()
        gradients = numpy_vectors([p.grad for p in problem.params if p.grad is not None])
        wrapper.step(loss=loss)
        reference.step(float(loss), gradients)
        record = last_step(wrapper)
        assert float(record.value_after_decay) == pytest.approx(reference.value, rel=1e-9), step
        assert float(record.theta) == pytest.approx(reference.theta, abs=1e-9), step
        cut += int(0 < reference.theta < 1)
    assert cut > 0 or scale < 1


@pytest.mark.parametrize("rule", [MoMo(0.2), MoMoStar()], ids=repr)
@pytest.mark.parametrize("make", [MOMENTUM[0], ADAM[0]], ids=["SGD", "Adam"])
def test_two_of_a_kind_are_one_with_two_groups(
    make: Callable[[list[Any]], Optimizer], rule: MoMo | MoMoStar
) -> None:
    def joint(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper([make(params[:2]), make(params[2:])], rule)

    def single(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(make([{"params": params[:2]}, {"params": params[2:]}]), rule)

    # The inner products of groups that share a block are summed up in another order.
    assert relative_distance(trajectory(joint, 50), trajectory(single, 50)) < 1e-13


def test_without_a_bound_each_takes_its_own_step() -> None:
    def bare(params: list[Tensor]) -> JointOptimizer:
        return JointOptimizer(muon_and_adamw(params))

    ours = trajectory(lambda p: wrapped(p, -math.inf), 50)
    assert relative_distance(ours, trajectory(bare, 50)) < 1e-12


def test_one_theta_for_all() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params, lr=1.0)
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step(loss=problem.gradients())
    theta = last_step(optimizer).theta
    assert 0 < theta < 1
    assert optimizer.effective_lrs() == [theta, 0.25 * theta]


def whole_loss(problem: Problem) -> float:
    return float(problem.loss(problem.params, torch.arange(64)).detach())


def test_muon_and_adamw_train_at_a_cap_that_ruins_them_bare() -> None:
    def final_loss(make: Callable[[list[Tensor]], Optimizer]) -> float:
        problem = Problem()
        for _ in problem.train(make, 60):
            pass
        return whole_loss(problem)

    start = whole_loss(Problem())
    assert final_loss(lambda p: JointOptimizer(muon_and_adamw(p, lr=30.0))) > 10 * start
    assert final_loss(lambda p: wrapped(p, bound=0.2, lr=30.0)) < start / 2


def test_parameters_of_different_precision() -> None:
    """The scalars take the wider one; each optimizer computes in its own."""
    dtypes = (torch.float32, torch.float64)
    params = [torch.ones(3, dtype=dtype, requires_grad=True) for dtype in dtypes]
    optimizer = MoMoWrapper([SGD(params[:1], lr=1.0, momentum=0.9), Adam(params[1:], lr=1.0)])
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=2.0)
    assert last_step(optimizer).theta.dtype is torch.float64
    assert tuple(p.dtype for p in params) == dtypes
    assert all(not torch.equal(p.detach(), torch.ones_like(p)) for p in params)


def resumed(optimizer: MoMoWrapper, problem: Problem) -> MoMoWrapper:
    """A fresh wrapper on the same parameters, with the state of the other from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = wrapped(problem.params)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def copied(run: tuple[Problem, MoMoWrapper], how: str) -> tuple[Problem, MoMoWrapper]:
    problem, optimizer = run
    if how == "deepcopy":
        return copy.deepcopy(run)
    fresh = Problem()
    fresh.generator.set_state(problem.generator.get_state())
    if how == "pickle":
        fresh.params, other = pickle.loads(pickle.dumps((problem.params, optimizer)))
        return fresh, other
    fresh.params = [p.detach().clone().requires_grad_() for p in problem.params]
    return fresh, resumed(optimizer, fresh)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "file"])
def test_run_goes_on_bit_for_bit(how: str) -> None:
    problem = Problem()
    optimizer = wrapped(problem.params, bound=0.5)
    for _ in range(20):
        take_step(optimizer, problem.gradients())
    other, its = copied((problem, optimizer), how)
    assert [isinstance(key, Tensor) for key in its.state] == [True] * 4
    its.rule = optimizer.rule
    for _ in range(20):
        take_step(optimizer, problem.gradients())
        take_step(its, other.gradients())
        assert last_step(its) == last_step(optimizer)
    assert torch.equal(flat(other.params), flat(problem.params))


def test_state_dict_is_that_of_one_optimizer() -> None:
    """Parameters are numbered through, as tools expect that save an optimizer."""
    problem = Problem()
    optimizer = wrapped(problem.params)
    take_step(optimizer, problem.gradients())
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    assert set(saved["state"]) == {0, 1, 2, 3}
    assert "momentum_buffer" in saved["state"][1]
    assert "exp_avg" in saved["state"][2]


def test_state_dict_of_other_groups_raises() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params)
    take_step(optimizer, problem.gradients())
    before = copy.deepcopy(optimizer.state_dict())
    weights, biases = problem.params[::2], problem.params[1::2]
    foreign = JointOptimizer([AdamW(biases[:1]), AdamW([*biases[1:], *weights])])
    message = "has groups of [1, 3] parameters, the optimizers have groups of [2, 2]. Pass the"
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(foreign.state_dict())
    assert str(optimizer.state_dict()) == str(before)


def test_groups_and_state_are_those_of_the_optimizers() -> None:
    problem = Problem()
    muon, adamw = muon_and_adamw(problem.params)
    optimizer = MoMoWrapper([muon, adamw], adapter=[MUON, None])
    assert [id(g) for g in optimizer.param_groups] == [
        id(g) for g in [*muon.param_groups, *adamw.param_groups]
    ]
    take_step(optimizer, problem.gradients())
    weight, bias = problem.params[:2]
    assert optimizer.state[weight] is muon.state[weight]
    assert optimizer.state[bias] is adamw.state[bias]
    assert set(optimizer.state) == {*muon.state, *adamw.state}
    assert len(optimizer.state) == 4
    optimizer.state[bias] = {"moved": 1}  # tools that move a state between devices write it
    assert adamw.state[bias] == {"moved": 1}
    del optimizer.state[bias]
    assert bias not in adamw.state
    assert bias not in optimizer.state
    with pytest.raises(KeyError):
        optimizer.state[torch.ones(1)]


def test_scheduler_sets_all_caps() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params, lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    take_step(optimizer, problem.gradients())
    scheduler.step()
    assert isinstance(optimizer.base, JointOptimizer)
    found = [group["lr"] for member in optimizer.base.optimizers for group in member.param_groups]
    assert found == pytest.approx([0.05, 0.05])


def test_settings_that_all_share_are_the_defaults() -> None:
    joint = JointOptimizer(muon_and_adamw(Problem().params))
    assert joint.defaults["lr"] == 0.02
    assert "betas" not in joint.defaults
    assert "nesterov" not in joint.defaults


def test_zero_grad_reaches_all() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params)
    problem.gradients()
    optimizer.zero_grad()
    assert all(param.grad is None for param in problem.params)


def test_group_can_be_added_to_one_of_them() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params[:3])
    late = {"params": problem.params[3:], "lr": 0.05}
    with pytest.raises(TypeError, match=r"to one, e\.g\. optimizer\.base\.optimizers\[0\]\.add"):
        optimizer.add_param_group(late)
    assert isinstance(optimizer.base, JointOptimizer)
    optimizer.base.optimizers[1].add_param_group(late)
    take_step(optimizer, problem.gradients())
    assert len(optimizer.effective_lrs()) == 3


def test_joint_optimizer_by_itself() -> None:
    """Without a wrapper it steps like its members, and calls a closure once."""
    twins = [Problem(), Problem()]
    members = muon_and_adamw(twins[0].params)
    joint = JointOptimizer(muon_and_adamw(twins[1].params))
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return twins[1].gradients()

    for _ in range(5):
        loss = twins[0].gradients()
        for member in members:
            member.step()
        assert torch.equal(joint.step(closure), loss)
    assert calls == [True] * 5
    assert torch.equal(flat(twins[0].params), flat(twins[1].params))
    assert "Muon" in repr(joint)
    assert "AdamW" in repr(joint)


@pytest.mark.parametrize(
    "settings",
    [
        ({"momentum": 0.9}, {"momentum": 0.5}),
        ({"momentum": 0.5, "nesterov": True}, {"momentum": 0.5}),
        ({"momentum": 0.5, "dampening": 0.5}, {"momentum": 0.5}),
        ({"momentum": 0.5}, {}),
    ],
    ids=str,
)
def test_groups_of_one_optimizer_may_average_differently(
    settings: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """As two optimizers would, also where a scheduler changes one of them in mid-run."""

    def halves(params: list[Tensor]) -> list[dict[str, Any]]:
        return [{"params": params[:2], **settings[0]}, {"params": params[2:], **settings[1]}]

    def run(make: Callable[[list[Tensor]], MoMoWrapper]) -> list[float]:
        found, problem = [], Problem()
        for step, optimizer in enumerate(problem.train(make, 30)):
            found.append(float(last_step(optimizer).theta))
            if step == 10:
                optimizer.param_groups[1]["momentum"] = 0.8
        return [*found, float(flat(problem.params).norm())]

    rule = MoMo(1.0)
    single = run(lambda p: MoMoWrapper(SGD(halves(p), lr=0.1), rule))
    joint = run(lambda p: MoMoWrapper([SGD([half], lr=0.1) for half in halves(p)], rule))
    assert single == pytest.approx(joint, rel=1e-10, abs=1e-10)
    assert any(0 < theta < 1 for theta in single)


class Counting(SGD):
    """Keeps numbers of its own: one in the state, under no parameter, one beside it."""

    total = 0

    def step(self, closure: Any = None) -> Any:
        self.state["count"] = self.state.get("count", 0) + 1  # type: ignore[call-overload, index]
        self.total += 1
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = state_dict["total"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "total"})


def test_members_keep_their_own_numbers_apart() -> None:
    def pair(params: list[Tensor]) -> list[Optimizer]:
        return [Counting(params[:2], lr=0.1), AdamW(params[2:3]), Counting(params[3:], lr=0.1)]

    problem = Problem()
    first, second = pair(problem.params), pair(Problem().params)
    problem.gradients()
    for optimizer, steps in zip(first, (1, 1, 3), strict=True):
        for _ in range(steps):
            optimizer.step()
    file = io.BytesIO()
    torch.save(JointOptimizer(first).state_dict(), file)
    file.seek(0)
    joint = JointOptimizer(second)
    joint.load_state_dict(torch.load(file, weights_only=True))
    counts: list[Any] = [optimizer.state.get("count") for optimizer in second]  # type: ignore[call-overload]
    assert counts == [1, None, 3]
    assert [getattr(optimizer, "total", None) for optimizer in second] == [1, None, 3]
    assert len(dict(joint.state)) == len(joint.state)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_distributed_state_dict_names_parameters(flatten: bool) -> None:
    """Distributed checkpoints give parameters names instead of numbers."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def make() -> tuple[torch.nn.Module, MoMoWrapper]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        params = list(model.parameters())
        members = [Muon(params[::2], lr=0.1), AdamW(params[1::2], lr=0.1)]
        # Muon's own average, which is in any fresh Muon's state too.
        muon = ProposingAdapter("momentum_buffer", beta=0.95)
        return model, MoMoWrapper(members, MoMoStar(), adapter=[muon, None])

    def train(model: torch.nn.Module, optimizer: MoMoWrapper) -> None:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)

    model, optimizer = make()
    train(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, its = make()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, its, saved, options=options)
    train(model, optimizer)
    train(other, its)
    assert torch.equal(flat(list(other.parameters())), flat(list(model.parameters())))


def test_one_adapter_for_several_optimizers_serves_each() -> None:
    def run(adapter: Any) -> Tensor:
        return trajectory(lambda p: MoMoWrapper(muon_and_adamw(p), MoMo(1.0), adapter=adapter), 20)

    assert torch.equal(run(ProposingAdapter()), run([ProposingAdapter(), ProposingAdapter()]))


def test_member_without_parameters() -> None:
    problem = Problem()
    idle = AdamW([{"params": []}], lr=0.1)
    optimizer = MoMoWrapper([SGD(problem.params, lr=0.1), idle])
    take_step(optimizer, problem.gradients())
    assert len(optimizer.effective_lrs()) == 2


def test_optimizers_that_are_joint_already_are_taken_apart() -> None:
    params = Problem().params
    inner = JointOptimizer([SGD(params[:1], lr=0.1), SGD(params[1:2], lr=0.1)])
    assert len(JointOptimizer([inner, AdamW(params[2:])]).optimizers) == 3


def test_tools_may_set_groups_and_state_directly() -> None:
    problem = Problem()
    optimizer = wrapped(problem.params)
    take_step(optimizer, problem.gradients())
    state = optimizer.state
    optimizer.state = state
    assert len(optimizer.state) == 4
    groups = [{**group, "lr": 0.5} for group in optimizer.param_groups]
    optimizer.__setstate__({"param_groups": groups, "state": {}})
    assert len(optimizer.state) == 0
    assert isinstance(optimizer.base, JointOptimizer)
    assert [g["lr"] for o in optimizer.base.optimizers for g in o.param_groups] == [0.5, 0.5]
    with pytest.raises(ValueError, match="Expected 2 groups, as many as the optimizers have"):
        optimizer.param_groups = groups[:1]


def test_another_number_of_adapters() -> None:
    with pytest.raises(ValueError, match="got 2 optimizers and 1 adapters"):
        MoMoWrapper(muon_and_adamw(Problem().params), adapter=[SGDAdapter()])


def test_member_with_a_state_dict_of_its_own_form_gets_the_entries_of_its_groups() -> None:
    """It looks at its own part of the state dict only."""
    package = pytest.importorskip("pytorch_optimizer")

    def make() -> JointOptimizer:
        params = [torch.ones(2, requires_grad=True) for _ in range(3)]
        return JointOptimizer([package.Lookahead(SGD(params[:2], lr=0.1)), SGD(params[2:], lr=0.2)])

    saved, loading = make(), make()
    for group in loading.param_groups:
        group["momo_new"] = None
    state_dict = with_entries(saved.state_dict(), [{"momo_new": 1.0}, {"momo_new": 2.0}])
    loading.load_state_dict(state_dict)
    assert [group["momo_new"] for group in loading.param_groups] == [1.0, 2.0]
    assert [group["lr"] for group in loading.param_groups] == [0.1, 0.2]
    assert [group["params"] for group in state_dict["param_groups"]] == [[0, 1], [2]]
    assert "momo_new" not in saved.param_groups[0]
