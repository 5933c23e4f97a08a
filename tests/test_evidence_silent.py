"""How many runs are ruined in silence: the counts on the page are those of the raw results."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for needed in ("sklearn", "pandas", "schedulefree", "prodigyopt", "prodigyplus"):
    pytest.importorskip(needed, reason="the examples and test extras are not installed")

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


@pytest.fixture
def silent() -> Any:
    return import_module("docs.evidence.silent")


def test_counts_are_those_of_the_results(silent: Any) -> None:
    page = PAGE.read_text()
    for line in silent.summary().splitlines():
        if not line.startswith(" "):
            rule, rest = line.split(": ")
            numbers = [word for word in rest.split() if word.isdigit()]
            assert f"| {rule} | {' | '.join(numbers)} |" in page


def test_a_run_that_is_worse_at_its_end_is_ruined(silent: Any) -> None:
    def row(first: float, last: float, error: str = "") -> Any:
        return vars(SimpleNamespace(first=first, last=last, error=error))

    assert silent.is_ruined(row(1.0, 2.0))
    assert not silent.is_ruined(row(2.0, 1.0))
    assert not silent.is_ruined(row(1.0, 2.0, "the training loss is nan"))


def test_one_task_is_watched(silent: Any) -> None:
    found = silent.watch("heavy tails, linear", "TrustedMoMo", 3)
    assert found["error"] == ""
    assert found["steps"] > 100
    assert found["last"] < found["first"]
