"""TrustedMoMo's verdicts on slopes: against a reference, by hand, and in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

from momo_wrap import ModelStats, MoMoWrapper, TrustedMoMo
from tests import reference_rules
from tests.problems import Problem, flat

C = 0.1


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def measured(step: int, slope: float, predicted: float, lr: float = 8.0) -> ModelStats:
    """The statistics of a step after a measured one."""
    one = scalar(1.0)
    return ModelStats(
        loss=one,
        mean_loss=one,
        value=one,
        value_after_decay=one,
        predicted_decrease=one,
        gradient_decrease=one,
        lower_bound=0.0,
        learning_rate=scalar(lr),
        probed_prediction=scalar(predicted),
        probed_slope=scalar(slope),
        step=step,
        was_probed=True,
    )


def at(step: int) -> ModelStats:
    """The statistics of a step."""
    return measured(step, 0.0, 1.0)


def memory(**values: float) -> dict[str, Tensor]:
    """A memory in which no losses were averaged, so that slopes alone decide."""
    kept = TrustedMoMo().initial_memory(0.0)
    kept.update(
        trusted=1.0,
        last_step_size=1.0,
        last_lr=8.0,
        peak_lr=8.0,
        last_mean_loss=1.0,
        prediction=1.0,
    )
    return {name: scalar(value) for name, value in {**kept, **values}.items()}


def trusted_after(stats: ModelStats, kept: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Return r after a step, and the memory of slopes."""
    found = TrustedMoMo()(stats, kept).memory
    return float(found["trusted"]), {n: found[n] for n in ("slopes", "slope", "slope_square")}


@given(
    st.integers(0, 120),
    st.lists(
        st.tuples(
            st.one_of(st.floats(-3, 3), st.just(math.nan), st.just(math.inf)),
            st.floats(-0.5, 2),
            st.floats(0, 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_it_is_the_reference(first: int, sequence: list[tuple[float, float, float, bool]]) -> None:
    reference, kept = reference_rules.Trusted(0.0), memory()
    for k, (slope, predicted, part, lowered) in enumerate(sequence, start=first + 1):
        trusted = float(kept["trusted"])
        kept["last_step_size"] = scalar(part * trusted)
        kept["last_lr"] = scalar(9.0 if lowered else 8.0)
        found, remembered = trusted_after(measured(k + 1, slope, predicted), kept)
        reference.log_radius = math.log(trusted)
        reference.measure(k, slope, predicted, part * trusted, lowered)
        expected = math.exp(reference.log_radius)
        mean, error = reference.slope()
        kept = memory(**{n: float(v) for n, v in remembered.items()}, trusted=expected)
        # A verdict that hangs on a rounding is neither's.
        if min(abs(mean - edge) for edge in (C, 0.0, -0.5)) > 1e-9 or error > 1e-9:
            assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "slope", "expected"),
    [
        (31, 0.5, math.exp(0.05)),
        (31, 0.05, 1.0),  # the end is near
        (31, -0.4, 1.0),  # beyond the best step, but none of the first 100 is annealed
        (31, -0.6, math.exp(-0.05)),
        (201, 0.5, math.exp(0.05 * math.sqrt(3))),
        (201, 0.05, 1.0),
        (201, -0.4, math.exp(-3 / 200)),
        (201, -0.6, math.exp(-0.05 * math.sqrt(3))),
        (201, math.nan, 1.0),
    ],
)
def test_by_hand(step: int, slope: float, expected: float) -> None:
    """After many measurements alike, of a predicted decrease of 1."""
    known = 0.0 if math.isnan(slope) else slope
    kept = memory(slopes=19.0, slope=known, slope_square=known**2)
    assert trusted_after(measured(step, slope, 1.0), kept)[0] == pytest.approx(expected)


def test_noise_is_no_verdict() -> None:
    """Of z = ±1 by turns the error is 0.24: no growth, and annealing as 1/k."""
    kept = memory(slopes=19.0, slope=0.2, slope_square=1.0)
    assert trusted_after(measured(31, 0.2, 1.0), kept)[0] == 1.0
    assert trusted_after(measured(301, 0.2, 1.0), kept)[0] == pytest.approx(math.exp(-3 / 300))


@pytest.mark.parametrize(("step", "grows"), [(31, True), (101, True), (301, False)])
def test_late_growth_takes_more_than_one_standard_error(step: int, grows: bool) -> None:
    """Of z with mean 0.4 and a standard error of 0.22: 1 of it is enough until step 165."""
    kept = memory(slopes=19.0, slope=0.4, slope_square=1.0)
    found, _ = trusted_after(measured(step, 0.4, 1.0), kept)
    assert (found > 1.0) == grows


def test_a_schedule_that_lowers_the_learning_rate_does_the_annealing() -> None:
    kept = memory(slopes=19.0, slope=-0.3, slope_square=0.09)
    assert trusted_after(measured(301, -0.3, 1.0, lr=4.0), kept)[0] == 1.0
    assert trusted_after(measured(301, -0.3, 1.0, lr=8.0), kept)[0] < 1.0


@pytest.mark.parametrize(("slope", "predicted"), [(1.0, 0.0), (1.0, -1.0), (math.inf, 1.0)])
def test_invalid_measurements_do_not_change_the_memory(slope: float, predicted: float) -> None:
    kept = memory(slopes=7.0, slope=0.3, slope_square=0.2)
    r, remembered = trusted_after(measured(31, slope, predicted), kept)
    assert r == 1.0
    assert [float(v) for v in remembered.values()] == [7.0, 0.3, 0.2]


@pytest.mark.parametrize(
    ("observed", "slope", "expected"),
    [(1.0, 0.0, math.exp(0.03)), (1.0, -0.2, 1.0), (0.3, 0.0, 1.0), (-1.0, 0.0, 1.0)],
)
def test_a_fall_of_the_losses_beyond_doubt_lets_steps_grow(
    observed: float, slope: float, expected: float
) -> None:
    """Between two measurements; of a predicted decrease of 1, with a variance of 1/4."""
    kept = memory(weight=1.0, predicted=1.0, observed=observed, slope=slope)
    kept.update(observed_square=scalar(observed**2 + 0.25))
    # The next step observes and predicts the same once more.
    kept.update(last_mean_loss=scalar(5.0), prediction=scalar(4.0))
    stats = replace(measured(35, math.nan, math.nan), was_probed=False, loss=scalar(5.0 - observed))
    # s' = sqrt(0.95 / 4 / 38) = 0.08: a surplus of 0.8 is above 3 s', one of 0.1 is not
    assert trusted_after(stats, kept)[0] == pytest.approx(expected)


def test_first_step_is_a_hundredth_of_the_way_to_the_bound() -> None:
    optimizer = MoMoWrapper(Adam([param := nn.Parameter(torch.ones(1))], lr=8.0), TrustedMoMo())
    param.grad = torch.ones(1)
    optimizer.step(loss=4.0)
    # The model falls by ⟨d, u⟩ = 1 per unit of step size, from 4: the bound is 4 away.
    assert float(param.detach()) == pytest.approx(1.0 - 0.01 * 4.0)


def test_which_steps_are_measured() -> None:
    rule = TrustedMoMo()
    assert [step for step in range(1, 110) if rule.wants_slope(at(step))] == [
        *range(1, 101), 102, 105, 108,
    ]  # fmt: skip
    assert not TrustedMoMo(every=math.inf).wants_slope(at(101))
    assert not TrustedMoMo(-math.inf).wants_slope(at(1))
    assert not rule.wants_slope(replace(at(1), is_scheduled=True))
    assert not rule.wants_probe(at(1))


# In training.

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs), labels)


class Digits:
    """A small network on five noisy classes."""

    def __init__(self, lr: float, bound: float = 0.0, clip: float = math.inf) -> None:
        torch.manual_seed(0)
        self.centres, self.clip = 2.0 * torch.randn(5, 20), clip
        layers = [nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
        self.model = nn.Sequential(*layers)
        self.optimizer = MoMoWrapper(Adam(self.model.parameters(), lr=lr), TrustedMoMo(bound))
        self.count = 0

    def train(self, steps: int, drift: float = 0.0) -> Digits:
        """Take some steps, with a loss that also rises over time."""
        for _ in range(steps):
            labels = torch.randint(5, (32,))
            inputs = self.centres[labels] + 2.0 * torch.randn(32, 20)
            loss = cross_entropy(self.model, inputs, labels)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.count += 1
            self.optimizer.step(loss=loss.detach() + drift * self.count)
        return self

    def accuracy(self) -> float:
        """On new data."""
        labels = torch.arange(5).repeat(400)
        inputs = self.centres[labels] + 2.0 * torch.randn(2000, 20)
        return float((self.model(inputs).argmax(dim=1) == labels).float().mean())


def test_a_clipped_network_is_trained_at_a_cap_of_100() -> None:
    """The model predicts too little there, which losses alone take for too short a step."""
    bare = Digits(0.01, bound=-math.inf, clip=0.1).train(300).accuracy()
    assert Digits(100.0, clip=0.1).train(300).accuracy() > bare - 0.01
    assert bare > 0.9


def test_a_loss_that_rises_by_itself_is_trained_as_one_that_does_not() -> None:
    plain = Digits(100.0).train(300).accuracy()
    assert Digits(100.0).train(300, drift=0.05).accuracy() > plain - 0.02
    assert plain > 0.9


@pytest.mark.parametrize("steps", [55, 161])
def test_resumes_bit_for_bit(steps: int) -> None:
    """At a step that is to be measured, as all of the first 100 are, and between two."""
    run = Digits(100.0).train(steps)
    saved = copy.deepcopy(
        (run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state())
    )
    expected = flat(list(run.train(30).model.parameters()))
    resumed = Digits(100.0)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert torch.equal(flat(list(resumed.train(30).model.parameters())), expected)


def test_a_copy_goes_on_alike() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=100.0), TrustedMoMo())
    for _ in range(20):
        optimizer.step(loss=problem.gradients())
    twin = copy.deepcopy(optimizer)
    copies = [param for group in twin.param_groups for param in group["params"]]
    loss = problem.gradients()
    for own, param in zip(copies, problem.params, strict=True):
        own.grad = None if param.grad is None else param.grad.clone()
    optimizer.step(loss=loss)
    twin.step(loss=loss)
    assert torch.equal(flat(copies), flat(problem.params))


def test_outliers_do_not_let_steps_grow_for_ever() -> None:
    """Regression with noise of infinite variance in the targets, which losses alone run after."""
    torch.manual_seed(0)
    noise = torch.distributions.StudentT(torch.tensor(1.5))
    weights = torch.randn(10)
    param = nn.Parameter(torch.zeros(10))
    optimizer = MoMoWrapper(Adam([param], lr=100.0), TrustedMoMo())
    for _ in range(600):
        inputs = torch.randn(32, 10)
        loss = functional.smooth_l1_loss(inputs @ param, inputs @ weights + noise.sample((32,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    assert float((param.detach() - weights).norm() / weights.norm()) < 0.2
    assert float(optimizer.effective_lrs()[0]) < 0.3
