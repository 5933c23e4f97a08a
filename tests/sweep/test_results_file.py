"""The CSV file of a sweep is read and written without loss, and other files are left alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from momo_wrap.sweep import load
from momo_wrap.sweep.results_file import COLUMNS, Row, Run, read, write

RESULTS = Path(__file__).parents[2] / "docs" / "evidence" / "results"
FIRST, SECOND = Run("task", "SGD, fast", 0.1, 0), Run("task", "SGD, fast", 1e-7 / 3, 1)


def two_rows(path: Path) -> None:
    done: Row = {**dict.fromkeys(COLUMNS, ""), "status": "ok", "loss": 0.1 + 0.2, "score": math.inf}
    done |= {"results": {"a": 1}, "settings": {}, "wrapped": True, "seconds": math.nan}
    done |= {"message": "two\nlines", "torch": "2.10", "traceback": "lines\nof it"}
    write(path, {run: {**done, **run._asdict()} for run in (FIRST, SECOND)})


def test_rows_return_exactly(tmp_path: Path) -> None:
    two_rows(tmp_path / "r.csv")
    rows = read(tmp_path / "r.csv")
    assert list(rows) == [FIRST, SECOND]
    for row in rows.values():
        assert (row["loss"], row["score"], row["wrapped"]) == (0.1 + 0.2, math.inf, True)
        assert math.isnan(row["seconds"])
        assert (row["message"], row["torch"], row["traceback"]) == ("two\nlines", "2.10", "")
    assert list(load(tmp_path / "r.csv")["a"]) == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


@pytest.mark.parametrize(
    "name", ["candidates", "constant", "decay", "hard_tasks", "long_runs", "profiles", "which_rule"]
)
def test_committed_results_are_written_as_they_are(name: str, tmp_path: Path) -> None:
    path, copy = RESULTS / f"{name}.csv", tmp_path / "copy.csv"
    write(copy, read(path))
    assert copy.read_bytes() == path.read_bytes()


def test_empty_file_of_results(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", {})
    assert load(tmp_path / "r.csv").empty
    assert "score" in load(tmp_path / "r.csv").columns


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*r\.csv, and no .*r\.journal"):
        load("r.csv")


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes of mine", ""])
def test_other_files_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no file of results"):
        load(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.1,0,ok", "abc,0,ok", "is no file of results: .*abc"),
        ("score,loss", "score,cost", "is no file of results: .*'loss'"),
        ('"{""a"": 1}"', "{a}", "is no file of results: Expecting property name"),
        ("3.3333333333333334e-08,1,", "0.1,0,", "has a run twice, again in row 2. Remove one"),
    ],
)
def test_damaged_rows(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "r.csv"
    two_rows(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read(path)
