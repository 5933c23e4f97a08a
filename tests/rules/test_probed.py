"""TrustedMoMo with probes: against a reference in NumPy, by hand, and in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from momo_wrap import ModelStats, MoMoWrapper, TrustedMoMo
from momo_wrap.rules.probed import REMEMBERED, judged

EVERY = 10


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def probed(
    step: int, decrease: float, slope: float, foretold: float, lr: float = 8.0
) -> ModelStats:
    """What a rule sees at a step whose predecessor was probed."""
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
        probed_decrease=scalar(decrease),
        probed_prediction=scalar(foretold),
        probed_slope=scalar(slope),
        step=step,
        has_probe=True,
        was_probed=True,
    )


def memory(trusted: float, taken: float, lr: float = 8.0, **more: float) -> dict[str, Tensor]:
    kept = {"trusted": trusted, "last_step_size": taken, "last_lr": lr}
    return {name: scalar({**kept, **more}.get(name, 0.0)) for name in (*kept, *REMEMBERED)}


class Reference:
    """Equations (15) and (16) in float64, written from the page."""

    def __init__(self) -> None:
        self.ratios: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self.mean, self.square = np.zeros(3), np.zeros(3)

    def follow(
        self, k: int, o: float, s: float, p: float, r: float, t: float, lowered: bool
    ) -> float:
        """Return r after the probe of step k."""
        if not (p > 16 * 2**-52 and t > 0):  # the loss is 1
            return r
        ratios = np.clip(np.array([o, s - 2 * o / 3, s + o]) / p, -1, 1)
        self.ratios.append(ratios)
        weight = 1 / min(len(self.ratios), 8)
        self.mean = self.mean + weight * (ratios - self.mean)
        self.square = self.square + weight * (ratios**2 - self.square)
        n = min(len(self.ratios), 15)
        error = np.full(3, np.inf)
        if n > 1:
            error = np.sqrt(np.maximum(self.square - self.mean**2, 0) / (n - 1))
        since = 1 if k <= 4 * EVERY else EVERY
        change = 0.06 * math.sqrt(since)
        low = self.mean - error
        if low[0] > 0.4 or (low[0] > 0 and low[1] > 0) or (n < 3 and min(ratios[:2]) > 0):
            return max(r, t * math.exp(change))
        if self.mean[0] + error[0] < 0:
            return max(min(r, t), r / 2) * math.exp(-change)
        if low[2] < 0 and n > 1 and k > 2 * EVERY and not lowered:
            return r * math.exp(-min(change, since / k))
        return r


@given(
    st.lists(
        st.tuples(
            st.floats(-3, 3), st.floats(-3, 3), st.floats(-0.5, 2), st.floats(0, 1), st.booleans()
        ),
        min_size=1,
        max_size=60,
    )
)
def test_it_is_the_reference(probes: list[tuple[float, float, float, float, bool]]) -> None:
    reference, kept = Reference(), memory(1.0, 1.0)
    for i, (decrease, slope, foretold, part, lowered) in enumerate(probes):
        step = i + 2 if i < 4 * EVERY else 4 * EVERY + EVERY * (i - 4 * EVERY + 1) + 1
        trusted = float(kept["trusted"])
        kept["last_step_size"] = scalar(part * trusted)
        kept["last_lr"] = scalar(9.0 if lowered else 8.0)
        found, remembered = judged(probed(step, decrease, slope, foretold), kept, EVERY)
        expected = reference.follow(
            step - 1, decrease, slope, foretold, trusted, part * trusted, lowered
        )
        margins = np.abs(reference.mean)  # a verdict that hangs on a rounding is neither's
        kept = {**kept, **remembered, "trusted": scalar(expected)}
        if margins.min() > 1e-9:
            assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("decrease", "slope", "expected"),
    [
        (1.0, 1.0, math.exp(0.06)),  # all came true
        (0.3, 0.25, math.exp(0.06)),  # little, but the loss falls on at the end
        (0.2, -0.1, 1.0),  # little, and the end is near
        (0.1, -0.4, math.exp(-1 / 30)),  # beyond 4/3 of what is best
        (-0.5, -1.0, math.exp(-0.06)),  # the loss has risen
        (math.nan, 0.0, 1.0),
    ],
)
def test_by_hand(decrease: float, slope: float, expected: float) -> None:
    """After many probes alike, at the probe of step 30."""
    kept = memory(1.0, 1.0)
    for step in range(2, 31):
        _, remembered = judged(probed(step, decrease, slope, 1.0), kept, EVERY)
        kept.update(remembered)
    found, _ = judged(probed(31, decrease, slope, 1.0), kept, EVERY)
    assert float(found) == pytest.approx(expected)


def test_a_schedule_that_lowers_the_learning_rate_does_the_annealing() -> None:
    kept = memory(1.0, 1.0, probes=15.0, came_true=0.1, comes_near=-0.3)
    kept.update({f"{name}_square": kept[name] ** 2 for name in ("came_true", "comes_near")})
    stats = probed(31, 0.1, -0.4, 1.0, lr=4.0)
    assert float(judged(stats, kept, EVERY)[0]) == 1.0


def test_steps_grow_to_half_of_the_exact_line_search_and_shrink_from_four_thirds() -> None:
    """On x²/2 from x = 1: a step of r leads to 1 - r, the best is 1; foretold were 5 r."""
    for length, expected in ((0.45, 1), (0.55, 0), (1.3, 0), (1.36, -1)):
        decrease, slope = (1 - (1 - length) ** 2) / 2, (1 - length) * length
        kept = memory(length, length)
        for step in range(2, 41):
            found, remembered = judged(probed(step, decrease, slope, 5 * length), kept, EVERY)
            kept.update(remembered)
        assert np.sign(round(float(found) - length, 9)) == expected


@pytest.mark.parametrize(
    ("observed", "came_true", "expected"),
    [(1.0, 0.1, math.exp(0.03)), (1.0, -0.1, 1.0), (0.3, 0.1, 1.0), (-1.0, 0.1, 1.0)],
)
def test_a_fall_of_the_losses_beyond_doubt_lets_steps_grow(
    observed: float, came_true: float, expected: float
) -> None:
    """Between two probes; of a decrease of 1 that was foretold, with a variance of 1/4."""
    rule = TrustedMoMo()
    kept = dict.fromkeys(rule.initial_memory(0.0), 0.0)
    kept.update(trusted=1.0, weight=1.0, predicted=1.0, last_step_size=1.0, last_lr=8.0)
    kept.update(observed=observed, observed_square=observed**2 + 0.25, came_true=came_true)
    # The next step observes and foretells the same once more.
    kept.update(last_mean_loss=5.0, prediction=4.0)
    known = probed(35, math.nan, math.nan, math.nan)
    stats = replace(known, was_probed=False, loss=scalar(5.0 - observed))
    tensors = {name: scalar(value) for name, value in kept.items()}
    # s = sqrt(0.95 / 4 / 38) = 0.08 and c P = 0.2: the surplus of 0.8 is above 3 s, that of 0.1 not
    assert float(rule(stats, tensors).memory["trusted"]) == pytest.approx(expected)


# In training.


def digits(clip: float = math.inf) -> tuple[nn.Module, Any]:
    """Return a small network, and a function that trains it by one step."""
    torch.manual_seed(0)
    centres = 2.0 * torch.randn(5, 20)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    model.append(nn.Linear(32, 5))

    def step(optimizer: MoMoWrapper, probe: bool, called: list[int] | None = None) -> None:
        labels = torch.randint(5, (32,))
        inputs = centres[labels] + 2.0 * torch.randn(32, 20)

        def evaluate() -> Tensor:
            if called is not None:
                called.append(1)
            return functional.cross_entropy(model(inputs), labels)

        loss = functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(loss=loss, probe=evaluate if probe else None)

    def accuracy() -> float:
        labels = torch.arange(5).repeat(400)
        inputs = centres[labels] + 2.0 * torch.randn(2000, 20)
        return float((model(inputs).argmax(dim=1) == labels).float().mean())

    model.accuracy = accuracy  # type: ignore[assignment]
    return model, step


def test_a_clipped_network_is_trained_at_a_cap_of_100() -> None:
    """The model foretells too little there, which losses alone take for too short a step."""
    model, step = digits(clip=0.1)
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=100.0), TrustedMoMo())
    called: list[int] = []
    for _ in range(300):
        step(optimizer, True, called)
    assert len(called) == 40 + 25
    bare_model, step = digits(clip=0.1)
    bare = MoMoWrapper(torch.optim.Adam(bare_model.parameters(), lr=0.01), TrustedMoMo(-math.inf))
    for _ in range(300):
        step(bare, False)
    found: list[float] = [m.accuracy() for m in (model, bare_model)]  # type: ignore[operator]
    assert found[0] > found[1] - 0.01
    assert found[1] > 0.9


def test_a_decrease_that_rounding_hides_says_nothing() -> None:
    """In float32, of a loss of 1."""
    kept = {name: value.float() for name, value in memory(1.0, 1.0).items()}
    for foretold, counts in ((1e-6, 0.0), (4e-6, 1.0)):
        stats = probed(31, 0.0, -foretold, foretold)
        single = {n: v.float() for n, v in vars(stats).items() if isinstance(v, Tensor)}
        _, remembered = judged(replace(stats, **single), kept, EVERY)  # type: ignore[arg-type]
        assert float(remembered["probes"]) == counts


def test_without_a_bound_nothing_is_probed() -> None:
    assert not TrustedMoMo(-math.inf).wants_probe(1)
    assert not TrustedMoMo(every=math.inf).wants_probe(1)


def test_every_is_kept_and_checked() -> None:
    rule = TrustedMoMo(every=3)
    assert [step for step in range(1, 22) if rule.wants_probe(step)] == [*range(1, 13), 15, 18, 21]
    with pytest.raises(ValueError, match="every=0, expected a number of at least 1"):
        TrustedMoMo(every=0)


def test_resumes_bit_for_bit_between_two_probes() -> None:
    model, step = digits()
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=100.0), TrustedMoMo())
    for _ in range(55):
        step(optimizer, True)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))

    def go_on() -> Mapping[str, Tensor]:
        for _ in range(30):
            step(optimizer, True)
        return copy.deepcopy(model.state_dict())

    expected = go_on()
    model.load_state_dict(saved[0])
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=100.0), TrustedMoMo())
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    torch.testing.assert_close(go_on(), expected, rtol=0, atol=0)


def test_where_probes_end_losses_decide_again() -> None:
    model, step = digits()
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=100.0), TrustedMoMo())
    trusted = []
    for i in range(250):
        step(optimizer, i < 50)
        trusted.append(float(optimizer._memory.rule["trusted"]))
    assert len(set(trusted[50:])) > 1
