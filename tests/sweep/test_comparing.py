"""Tolerances of hand-made tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from momo_wrap.sweep import tolerance

RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]


def table(scores: dict[str, Sequence[Any]], task: str = "task") -> pd.DataFrame:
    """A row per score; an entry that is a tuple has several seeds; None: diverged."""
    rows = []
    for optimizer, values in scores.items():
        for lr, entry in zip(RATES, values, strict=False):
            for seed, value in enumerate(entry if isinstance(entry, tuple) else (entry,)):
                status = "diverged" if value is None else "ok"
                row = {"task": task, "optimizer": optimizer, "lr": lr, "seed": seed}
                rows.append(
                    {**row, "score": math.nan if value is None else value, "status": status}
                )
    return pd.DataFrame(rows)


def decades(results: pd.DataFrame, margin: float = 0.02, **how: Any) -> list[float]:
    return [round(value, 9) for value in tolerance(results, margin, **how)["decades"]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9], 4.0),
        ([0.1, 0.9, 0.9, 0.1, 0.1], 1.0),
        ([0.1, 0.9, 0.1, 0.1, 0.1], 0.0),
        ([0.9, 0.9, 0.1, 0.9, 0.9], 1.0),
        ([0.9, 0.1, 0.9, 0.9, 0.9], 2.0),
        ([0.9, 0.88, 0.8799, 0.1, 0.1], 1.0),
    ],
)
def test_widest_interval(scores: list[float], expected: float) -> None:
    assert decades(table({"SGD": scores})) == [expected]


def test_the_best_is_that_of_any_optimizer() -> None:
    results = table({"a": [0.5, 0.5, 0.5, 0.5, 0.5], "b": [0.1, 0.9, 0.1, 0.89, 0.9]})
    found = tolerance(results, 0.02)
    assert list(found["decades"]) == [-math.inf, 1.0]
    assert math.isnan(found["lowest"][0])
    assert (found["lowest"][1], found["highest"][1]) == (1.0, 10.0)
    assert list(found["best"]) == [0.5, 0.9]
    assert list(found["threshold"]) == pytest.approx([0.88, 0.88])


def test_first_of_two_that_are_equally_wide() -> None:
    found = tolerance(table({"a": [0.9, 0.9, 0.1, 0.9, 0.9]}), 0.02)
    assert (found["lowest"][0], found["highest"][0]) == (1e-3, 1e-2)


def test_margin_is_included_despite_rounding() -> None:
    assert 0.8 - 0.1 > 0.7
    assert decades(table({"a": [0.8, 0.7, 0.699]}), margin=0.1) == [1.0]
    assert decades(table({"a": [0.9, 0.9]}), margin=0.0) == [1.0]


def test_losses() -> None:
    results = table({"a": [0.3, 0.2, 0.1, 0.25, 9.0]})
    assert decades(results, margin=0.15, higher_is_better=False) == [2.0]
    found = tolerance(results, 0.15, higher_is_better=False)
    assert (found["best"][0], found["best_lr"][0]) == (0.1, 0.1)
    assert found["threshold"][0] == pytest.approx(0.25)


def test_median_over_seeds_and_failures_as_the_worst() -> None:
    three = (0.9, 0.9, 0.1)
    assert decades(table({"a": [three, (0.9, 0.9, None), (0.9, None, None)]})) == [1.0]
    assert decades(table({"a": [(0.9, None), (0.9, 0.9)]})) == [0.0]
    assert decades(table({"a": [None, None]})) == [-math.inf]
    losses = table({"a": [(0.1, None), (0.1, 0.1)]})
    assert decades(losses, higher_is_better=False) == [0.0]


def test_tasks_are_distinguished() -> None:
    parts = [table({"a": [0.9, 0.9]}, "easy"), table({"a": [0.5, 0.1]}, "hard")]
    results = pd.concat(parts, ignore_index=True)
    assert decades(results) == [1.0, 0.0]
    assert list(tolerance(results, {"easy": 0.02, "hard": 0.5})["decades"]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"margin has no entry for task 'hard', only \['easy'\]"):
        tolerance(results, {"easy": 0.02})


def test_order_of_rows_does_not_matter() -> None:
    results = table({"a": [0.1, 0.9, 0.9, 0.1], "b": [0.9, 0.9, 0.9, 0.1]})
    mixed = tolerance(results.sample(frac=1, random_state=0), 0.02).set_index("optimizer")
    assert mixed["decades"].to_dict() == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan])
def test_margin_out_of_range(margin: float) -> None:
    with pytest.raises(ValueError, match="must be finite and not negative"):
        tolerance(table({"a": [0.9]}), margin)


def test_grids_that_differ() -> None:
    with pytest.raises(
        ValueError, match=r"1 runs are missing .*the first: lr 0.01, b, 0\. Compare"
    ):
        tolerance(table({"a": [0.9, 0.9], "b": [0.9]}), 0.02)
    with pytest.raises(ValueError, match=r"lr 0.01, a, 1"):
        tolerance(table({"a": [(0.9, 0.9), (0.9,)]}), 0.02)


def test_columns_that_lack() -> None:
    with pytest.raises(ValueError, match=r"lack 'accuracy' of task 'task'; they have .*'score'"):
        tolerance(table({"a": [0.9]}), 0.02, column="accuracy")
    with pytest.raises(ValueError, match="lack 'score' of task 'task'"):
        tolerance(table({"a": [0.9, math.nan]}), 0.02)
