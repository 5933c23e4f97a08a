"""Expected results and success rates at random learning rates, of hand-made tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from momo_wrap.sweep import at_random_lr
from tests.sweep.test_comparing import RATES, table


def measures(
    results: pd.DataFrame, margin: float = 0.02, worst: float = 0.0, **how: Any
) -> dict[str, float]:
    (row,) = at_random_lr(results, margin, worst, **how).to_dict("records")
    return {str(name): value for name, value in row.items()}


def test_window_and_trapezoids() -> None:
    """Of two windows of three decades the second is better."""
    found = measures(table({"a": [0.1, 0.5, 0.9, 0.9, 0.3]}))
    assert (found["lowest"], found["highest"]) == pytest.approx((1e-2, 10.0))
    assert found["expected"] == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    assert found["success"] == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["expected_low"] == found["expected"] == found["expected_high"]


def test_window_that_ends_between_two_rates() -> None:
    found = measures(table({"a": [0.9, 0.9, 0.1, 0.1, 0.1]}), decades=1.5)
    assert (found["lowest"], found["highest"]) == pytest.approx((1e-3, 10**-1.5))
    # At the end 0.5, so that the last half decade has 0.7 in the mean.
    assert found["expected"] == pytest.approx((0.9 + 0.5 * 0.7) / 1.5)
    assert found["success"] == pytest.approx((1.0 + 0.5 * 0.75) / 1.5)


def test_bands_over_seeds() -> None:
    found = measures(table({"a": [(0.9, 0.8, 0.7)] * 4}))
    assert found["expected"] == pytest.approx(0.8)
    assert (found["expected_low"], found["expected_high"]) == pytest.approx((0.7, 0.9))
    # The best is the best median, 0.8.
    assert found["success"] == pytest.approx(2 / 3)
    assert (found["success_low"], found["success_high"]) == (0.0, 1.0)


def test_failed_runs_count_as_the_worst() -> None:
    scores = table({"a": [0.2, 0.9, None, 0.05], "b": [0.1] * 4})
    found = at_random_lr(scores, 0.02, {"task": 0.1})
    assert found["expected"][0] == pytest.approx((0.55 + 0.5 + 0.1) / 3)
    with pytest.raises(ValueError, match=r"worst has no entry for task 'task', only \['other'\]"):
        at_random_lr(scores, 0.02, {"other": 0.1})
    losses = table({"a": [2.0, 1.0, 50.0, None]})
    found = measures(losses, margin=0.1, worst=2.0, higher_is_better=False)
    assert found["expected"] == pytest.approx((1.5 + 1.5 + 2.0) / 3)
    assert found["success"] == pytest.approx(1 / 3)


def test_it_is_what_random_learning_rates_give() -> None:
    values = [0.1, 0.5, 0.9, 0.8, 0.3]
    found = measures(table({"a": values}))
    drawn = np.random.default_rng(0).uniform(
        math.log10(found["lowest"]), math.log10(found["highest"]), 100_000
    )
    assert found["expected"] == pytest.approx(
        np.interp(drawn, np.log10(RATES), values).mean(), abs=2e-3
    )


def test_best_is_that_of_any_optimizer() -> None:
    found = at_random_lr(table({"a": [0.5] * 4, "b": [0.9] * 4}), 0.02, 0.1)
    assert list(found["success"]) == [0.0, 1.0]


def test_tasks_have_margins_of_their_own() -> None:
    both = pd.concat([table({"a": [0.9, 0.8] * 2}, "x"), table({"a": [0.9, 0.8] * 2}, "y")])
    found = at_random_lr(both, {"x": 0.2, "y": 0.01}, 0.1)
    assert list(found["success"]) == pytest.approx([1.0, 0.5])


def test_grid_too_narrow() -> None:
    with pytest.raises(
        ValueError, match=r"The grid spans 2 decades, from 0.001 to 0.1; at least 3"
    ):
        at_random_lr(table({"a": [0.9] * 3}), 0.02, 0.1)
