"""The CSV file of a sweep is read and written without loss, and other files are left alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from momo_wrap.sweep import load
from momo_wrap.sweep.grid import Run
from momo_wrap.sweep.results_file import empty_row, from_text, read, to_text, write

RESULTS = Path(__file__).parents[2] / "docs" / "evidence" / "results"
FIRST, SECOND = Run("task", "SGD, fast", 0.1, 0), Run("task", "SGD, fast", 1e-7 / 3, 1)


def two_rows(path: Path) -> None:
    done = {"status": "ok", "loss": 0.1 + 0.2, "results": {"a": 1}, "traceback": "lines\nof it"}
    write(path, [{**empty_row(run), **done} for run in (FIRST, SECOND)])


def test_rows_return_exactly(tmp_path: Path) -> None:
    two_rows(tmp_path / "r.csv")
    rows = read(tmp_path / "r.csv")
    assert list(rows) == [FIRST, SECOND]
    assert [row["loss"] for row in rows.values()] == [0.1 + 0.2] * 2
    assert list(load(tmp_path / "r.csv")["a"]) == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_rows_return_from_text() -> None:
    row = {**empty_row(FIRST), "loss": math.inf, "results": {"a": [1.5, "b"]}, "wrapped": True}
    again = from_text(to_text(row))
    assert math.isnan(again.pop("score"))
    assert math.isnan(again.pop("seconds"))
    assert again == {name: value for name, value in row.items() if name in again}


@pytest.mark.parametrize(
    "name", ["candidates", "constant", "decay", "hard_tasks", "long_runs", "profiles"]
)
def test_committed_results_are_written_as_they_are(name: str, tmp_path: Path) -> None:
    path, copy = RESULTS / f"{name}.csv", tmp_path / "copy.csv"
    write(copy, read(path).values())
    assert copy.read_bytes() == path.read_bytes()


def test_empty_file_of_results(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", [])
    assert load(tmp_path / "r.csv").empty
    assert "score" in load(tmp_path / "r.csv").columns
    (tmp_path / "nothing.csv").touch()
    assert load(tmp_path / "nothing.csv").empty


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*r\.csv, and no .*r\.journal"):
        load("r.csv")


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes of mine"])
def test_other_files_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"is not a file of results of this version.*expected"):
        load(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.1,0,ok", "abc,0,ok", "Line 2 of .* is no row of results .*could not convert"),
        ("0.1,0,ok", "0.1,ok", "Line 2 .*argument 2 is shorter"),
        ('"{""a"": 1}"', "[]", "Line 2 .*results is no JSON object"),
        ("3.3333333333333334e-08,1,", "0.1,0,", "Line 3 of .* is a second row of the run"),
    ],
)
def test_damaged_rows(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "r.csv"
    two_rows(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read(path)
