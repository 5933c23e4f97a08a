"""Whatever a killed process leaves in the file, the rows that were finished are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from momo_wrap.sweep.grid import Run
from momo_wrap.sweep.results_file import ResultsFile, load, read
from momo_wrap.sweep.training import empty_row

FIRST, SECOND = Run("task", "SGD, fast", 0.1, 0), Run("task", "SGD, fast", 1e-7 / 3, 1)


def two_rows(path: Path) -> list[int]:
    """Write two rows, and return the lengths of the file: with the header, and after each row."""
    lengths = []
    with ResultsFile(path) as file:
        lengths.append(path.stat().st_size)
        for run in (FIRST, SECOND):
            file.append({**empty_row(run), "status": "ok", "loss": 0.1 + 0.2, "results": {"a": 1}})
            lengths.append(path.stat().st_size)
    return lengths


def test_rows_return_exactly(tmp_path: Path) -> None:
    two_rows(tmp_path / "r.csv")
    with ResultsFile(tmp_path / "r.csv") as file:
        assert file.finished() == {FIRST, SECOND}
    rows = read(tmp_path / "r.csv")
    assert [row["loss"] for row in rows] == [0.1 + 0.2] * 2
    assert list(load(tmp_path / "r.csv")["a"]) == [1, 1]


def test_cut_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the test alone would take seconds of it
    path = tmp_path / "r.csv"
    lengths = two_rows(path)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with ResultsFile(path) as file:
            kept = sum(length >= end for end in lengths[1:])
            assert len(file.rows) == kept
            for run in (FIRST, SECOND)[kept:]:
                row = {**empty_row(run), "status": "ok", "loss": 0.1 + 0.2, "results": {"a": 1}}
                file.append(row)
        assert path.read_bytes() == whole


def test_empty_file_of_results(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r.csv"):
        pass
    assert load(tmp_path / "r.csv").empty
    assert "score" in load(tmp_path / "r.csv").columns


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes of mine"])
def test_other_files_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"is not a file of results of this version.*expected"):
        ResultsFile(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.1,0,ok", "abc,0,ok", "Line 2 of .* is no row of results .*could not convert"),
        ("0.1,0,ok", "0.1,ok", "Line 2 .*16 values instead of 17"),
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


@pytest.mark.skipif(sys.platform == "win32", reason="files are locked by fcntl")
def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    holder = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="Another sweep is writing to"):
            ResultsFile(path)
        other.communicate("")
    with ResultsFile(path) as file:
        assert file.rows == []
