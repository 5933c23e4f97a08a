"""A θ for each parameter group: against a NumPy reference, in its limits, and on every path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from momo_wrap import Adapter, ModelStats, MoMo, MoMoWrapper, ProposingAdapter, StepRule
from momo_wrap.research import PerGroup
from momo_wrap.rules import GroupStats, WeightDecayForm
from tests import mixture, reference_rules
from tests.problems import Problem, flat, last_step, relative_distance, trajectory
from tests.property.test_theta import stats as stats_of_one
from tests.reference import AdamBase, ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun
from tests.state.test_checkpoint import same
from tests.test_joint import ADAM, DAMPENED, MOMENTUM, NESTEROV, PLAIN, Pair, numpy_vectors

BOUND = 0.05
STEPS = 30  # until then the dynamics keep a rounding error far below the tolerances
LRS = (40.0, 80.0, 20.0, 60.0)

Params = list[Tensor]
Make = Callable[[Any], Optimizer]


def settings(params: Params, decay: float = 0.02, scale: float = 1.0) -> list[dict[str, Any]]:
    """A group for each parameter, with settings of its own."""
    return [
        {"params": [param], "lr": scale * lr, "weight_decay": decay / lr}
        for param, lr in zip(params, LRS, strict=True)
    ]


def gradients_of(problem: Problem) -> list[Tensor]:
    return [param.grad for param in problem.params if param.grad is not None]


def check_against_reference(
    problem: Problem, optimizer: MoMoWrapper, bases: list[SGDBase | AdamBase]
) -> None:
    """Compare with a run for each group, of all the losses and the group's gradients."""
    runs = [
        ReferenceRun(
            ReferenceGroup(x, group["lr"], group["weight_decay"], base), reference_rules.momo(BOUND)
        )
        for x, group, base in zip(
            numpy_vectors(problem.params), optimizer.param_groups, bases, strict=True
        )
    ]
    cut = np.zeros(len(runs))
    for step in range(STEPS):
        # Both move on from the library's parameters, see test_research.
        for run, x in zip(runs, numpy_vectors(problem.params), strict=True):
            np.testing.assert_allclose(run.group.x, x, rtol=1e-9, atol=1e-11)
            run.group.x = x
        loss = problem.gradients()
        gradients = numpy_vectors(gradients_of(problem))
        optimizer.step(loss=loss)
        for run, gradient in zip(runs, gradients, strict=True):
            run.step(float(loss), gradient)
        thetas = last_step(optimizer).theta.numpy()
        np.testing.assert_allclose(thetas, [run.theta for run in runs], atol=1e-9, err_msg=step)
        cut += (thetas > 0) & (thetas < 1)
    assert (cut > 0).all()
    assert cut.sum() > STEPS


@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("pair", [PLAIN, MOMENTUM, NESTEROV, ADAM], ids=lambda pair: pair[1]())
def test_trajectory_is_that_of_the_reference(pair: Pair, decay: float) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(
        pair[0](settings(problem.params, decay)), PerGroup(BOUND), weight_decay_form="proximal"
    )
    check_against_reference(problem, optimizer, [pair[1]() for _ in LRS])


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_trajectory_of_several_optimizers_is_that_of_the_reference(decay: float) -> None:
    """Each averages in another way."""
    problem, pairs = Problem(), (MOMENTUM, ADAM, PLAIN, DAMPENED)
    groups = settings(problem.params, decay)
    bases = [make([group]) for (make, _), group in zip(pairs, groups, strict=True)]
    optimizer = MoMoWrapper(bases, PerGroup(BOUND), weight_decay_form="proximal")
    check_against_reference(problem, optimizer, [b() for _, b in pairs])


def momentum(groups: Any) -> Optimizer:
    return SGD(groups, momentum=0.9)


def adam(groups: Any) -> Optimizer:
    return Adam(groups, betas=(0.8, 0.9))


MAKES: dict[str, tuple[Make, Adapter | None]] = {
    "SGD": (momentum, None),
    "Adam": (adam, None),
    "proposed SGD": (momentum, ProposingAdapter("momentum_buffer", beta=0.9)),
    "proposed Adam": (adam, ProposingAdapter("exp_avg", beta=0.8)),
    "proposed, with an average of its own": (adam, ProposingAdapter()),
}
makes = pytest.mark.parametrize(("make", "adapter"), MAKES.values(), ids=MAKES)


class Separate:
    """A wrapper with MoMo for each group, all of which see the same losses."""

    def __init__(self, optimizers: list[MoMoWrapper]) -> None:
        self.optimizers = optimizers

    def step(self, *, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.step(loss=loss)


@makes
def test_groups_are_stepped_as_if_each_were_alone(make: Make, adapter: Adapter | None) -> None:
    """To rounding: groups that share blocks are summed up in another order."""
    problem, twin = Problem(), Problem()
    form: WeightDecayForm = "proximal"  # a penalty of one group would be in the loss of all
    optimizer = MoMoWrapper(
        make(settings(problem.params)), PerGroup(BOUND), adapter=adapter, weight_decay_form=form
    )
    separate = [
        MoMoWrapper(make([group]), MoMo(BOUND), adapter=adapter, weight_decay_form=form)
        for group in settings(twin.params)
    ]
    for _ in range(STEPS // 3):  # until then, a nudge of the last place stays below 1e-12
        optimizer.step(loss=problem.gradients())
        loss = twin.gradients()
        for alone in separate:
            alone.step(loss=loss)
        thetas = torch.stack([last_step(alone).theta for alone in separate])
        torch.testing.assert_close(last_step(optimizer).theta, thetas, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(flat(problem.params), flat(twin.params), rtol=1e-9, atol=1e-12)


@makes
def test_one_group_is_momo(make: Make, adapter: Adapter | None) -> None:
    """Bit for bit."""

    def wrapped(rule: StepRule) -> Callable[[Params], Optimizer]:
        group = {"lr": 10.0, "weight_decay": 0.01}
        return lambda p: MoMoWrapper(make([{"params": p, **group}]), rule, adapter=adapter)

    expected = trajectory(wrapped(MoMo(BOUND)), STEPS)
    assert torch.equal(trajectory(wrapped(PerGroup(BOUND)), STEPS), expected)


@makes
def test_with_one_moving_group_it_is_momo(make: Make, adapter: Adapter | None) -> None:
    def wrapped(rule: StepRule, problem: Problem) -> MoMoWrapper:
        groups = settings(problem.params)
        for group in (*groups[:2], groups[3]):
            group["lr"] = 0.0
        return MoMoWrapper(make(groups), rule, adapter=adapter)

    problem, twin = Problem(), Problem()
    optimizer, momo = wrapped(PerGroup(BOUND), problem), wrapped(MoMo(BOUND), twin)
    cut = 0
    for _ in range(STEPS):
        optimizer.step(loss=problem.gradients())
        momo.step(loss=twin.gradients())
        theta = last_step(momo).theta
        torch.testing.assert_close(last_step(optimizer).theta[2], theta, rtol=1e-9, atol=1e-12)
        cut += int(0 < theta < 1)
    torch.testing.assert_close(flat(problem.params), flat(twin.params), rtol=1e-9, atol=1e-12)
    assert cut > STEPS / 4


def test_proposed_steps_are_those_that_are_read() -> None:
    """At a tenth of the learning rates, where rounding grows least by the dynamics."""

    def run(adapter: Adapter | None) -> tuple[Tensor, Tensor]:
        problem, thetas, path = Problem(), [], []
        base = adam(settings(problem.params, 0.0, scale=0.1))
        optimizer = MoMoWrapper(base, PerGroup(BOUND), adapter=adapter)
        for _ in range(STEPS // 2):
            optimizer.step(loss=problem.gradients())
            thetas.append(last_step(optimizer).theta)
            path.append(flat(problem.params))
        return torch.stack(path), torch.stack(thetas)

    proposed, _ = run(ProposingAdapter("exp_avg", beta=0.8))
    read, thetas = run(None)
    assert ((thetas > 0) & (thetas < 1)).sum() > STEPS / 2
    assert relative_distance(proposed, read) < 1e-9


def test_two_of_a_kind_are_one_with_as_many_groups() -> None:
    """Bit for bit, also where they are read in different ways."""

    def joint(params: Params) -> Optimizer:
        groups = settings(params, 0.0)
        adapters = [None, ProposingAdapter("exp_avg", beta=0.8)]
        bases = [adam(groups[:1]), adam(groups[1:])]
        return MoMoWrapper(bases, PerGroup(BOUND), adapter=adapters)

    def separate(params: Params) -> Any:
        groups = settings(params, 0.0)
        proposing = ProposingAdapter("exp_avg", beta=0.8)
        first = MoMoWrapper(adam(groups[:1]), PerGroup(BOUND))
        return Separate([first, MoMoWrapper(adam(groups[1:]), PerGroup(BOUND), adapter=proposing)])

    assert torch.equal(trajectory(joint, 50), trajectory(separate, 50))


@given(
    parts=st.lists(
        st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10), st.floats(-1, 1e3)),
        min_size=1,
        max_size=5,
    ),
    bound=st.floats(-10, 10),
)
def test_theta_of_each_group_is_a_fraction(
    parts: list[tuple[float, float, float, float]], bound: float
) -> None:
    loss, displacement, shift, decrease = torch.tensor(parts, dtype=torch.float64).unbind(dim=1)
    zero = torch.zeros((), dtype=torch.float64)
    groups = GroupStats(loss, displacement, shift, decrease, decrease)
    whole = ModelStats(zero, zero, zero, zero, zero, zero, bound, zero, groups)
    decision = PerGroup(bound)(whole, {})
    assert decision.theta.shape == (len(parts),)
    assert ((decision.theta >= 0) & (decision.theta <= 1)).all()
    after = groups.mean_loss + groups.displacement + groups.decay_shift
    height = after.clone()
    after -= decision.theta * groups.predicted_decrease
    cut = (decision.theta > 0) & (decision.theta < 1)
    torch.testing.assert_close(after[cut], torch.full_like(after[cut], bound), atol=1e-9, rtol=0)
    assert (after[(decision.theta == 1) & (groups.predicted_decrease > 0)] >= bound - 1e-9).all()
    assert (height[decision.theta == 0] <= bound).all()


def test_groups_may_overshoot_what_momo_would_not() -> None:
    """Without momentum and decay, θ_i = min(1, θ Σ_j N_j/N_i) if MoMo shortens, as documented."""
    problem = Problem()
    groups = settings(problem.params, 0.0)
    seen: list[ModelStats] = []

    class Watching(PerGroup):
        def __call__(self, stats: ModelStats, memory: Any) -> Any:
            seen.append(stats)
            return super().__call__(stats, memory)

    optimizer = MoMoWrapper(SGD(groups), Watching(BOUND))
    overshot = 0
    for _ in range(STEPS):
        optimizer.step(loss=problem.gradients())
        stats, thetas = seen[-1], last_step(optimizer).theta
        theta = MoMo(BOUND)(stats, {}).theta
        assert stats.groups is not None
        decreases = stats.groups.predicted_decrease
        assert (thetas >= theta).all()
        if theta < 1:
            torch.testing.assert_close(
                thetas, (theta * decreases.sum() / decreases).clamp(max=1.0), rtol=1e-9, atol=0
            )
        gap = stats.value_after_decay - BOUND
        assert (thetas * decreases).sum() <= len(groups) * gap.clamp(min=0.0) * (1 + 1e-9)
        overshot += int((thetas * decreases).sum() > gap * 1.01)
    assert overshot > STEPS / 4


def test_stats_of_one_group_are_those_of_all() -> None:
    stats = stats_of_one(2.0, 1.0, 0.5, shift=-0.5).by_group
    assert stats.value_after_decay.tolist() == [1.5]
    assert stats.lower_bound == 0.5
    again, once = (
        {name: value for name, value in vars(its).items() if not name.startswith("probed_")}
        for its in (stats.by_group, stats)
    )
    assert same(again, once)
    assert stats.probed_decrease.shape == stats.probed_prediction.shape == ()


def test_each_group_shows_its_effective_lr() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(momentum(settings(problem.params)), PerGroup(BOUND))
    for _ in range(5):
        optimizer.step(loss=problem.gradients())
    thetas = last_step(optimizer).theta.tolist()
    assert optimizer.effective_lrs() == [t * lr for t, lr in zip(thetas, LRS, strict=True)]
    assert len(set(thetas)) == len(LRS)


def test_a_group_that_overflows_does_not_stop_the_others() -> None:
    params = [torch.ones(2, dtype=torch.float32, requires_grad=True) for _ in range(2)]
    optimizer = MoMoWrapper(
        SGD([{"params": [p]} for p in params], lr=1.0, momentum=0.5), PerGroup()
    )
    for param, scale in zip(params, (1e30, 0.5), strict=True):
        param.grad = torch.full_like(param, scale)
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta.tolist() == [0.0, 1.0]
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta.isfinite().all()


@pytest.mark.parametrize("form", ["proximal", "decoupled", "scaled"])
@pytest.mark.parametrize("case", mixture.FEW, ids=str)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.slow
def test_compiled_passes(case: Any, form: Any) -> None:
    runs = []
    for compiled in (True, False):
        optimizer = mixture.wrapped(case, compiled, form=form)
        optimizer.rule = PerGroup()
        thetas = mixture.train(optimizer, range(20))
        runs.append({**mixture.snapshot(optimizer), "thetas": thetas})
    assert (runs[1]["thetas"][:, 0] != runs[1]["thetas"][:, 1]).any()
    assert mixture.distance(*runs) < 1e-12
