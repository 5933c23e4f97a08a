"""Every option of the libraries that docs/coming_from.md compares with has a row in its table."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "coming_from.md"
CLASSES = {
    "momo.Momo": "momo-opt",
    "momo.MomoAdam": "momo-opt",
    "prodigyopt.Prodigy": "Prodigy",
    "schedulefree.SGDScheduleFree": "schedule-free",
    "schedulefree.AdamWScheduleFree": "schedule-free",
    "schedulefree.RAdamScheduleFree": "schedule-free",
    "schedulefree.ScheduleFreeWrapper": "schedule-free",
}


def named_in_table(section: str) -> set[str]:
    """Return the Python names in the code of the first column of a section's table."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    first_cells = "\n".join(re.findall(r"^\|([^|]*)\|", text, re.M))
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", first_cells))))


@pytest.mark.parametrize("path", CLASSES)
def test_every_option_has_a_row(path: str) -> None:
    package, name = path.split(".")
    options = set(inspect.signature(getattr(pytest.importorskip(package), name)).parameters)
    assert {name, *options} - named_in_table(CLASSES[path]) == set()


def test_every_schedule_free_class_has_a_row() -> None:
    package = pytest.importorskip("schedulefree")
    classes = {name for name, value in vars(package).items() if inspect.isclass(value)}
    assert len(classes) >= 8
    assert classes - named_in_table("schedule-free") == set()
