"""The report is one file that needs nothing else, and has all results."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from momo_wrap import sweep
from tests.sweep.test_plots import PAIRS
from tests.sweep.test_plots import results as some_results

RATES = [1e-2, 1e-1, 1.0, 10.0]


class Cells(HTMLParser):
    """Collects the texts of the cells of all tables, and those of the marked ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.near: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = [*self._open, tag]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self._open}:
            self.rows[-1][-1] += data
        if "mark" in self._open:
            self.near.append(data)


def results(task: str = "task") -> pd.DataFrame:
    table = some_results(PAIRS, task)
    low = table[table["lr"] == RATES[0]].assign(lr=RATES[0] / 10)
    return pd.concat([low, table], ignore_index=True).assign(
        momo_wrap="1", torch="2", python="3", message="", traceback=""
    )


def written(path: Path, table: pd.DataFrame, **how: Any) -> tuple[str, Cells]:
    sweep.report(table, path, **{"margin": 0.05, "worst": 0.1, **how})
    text = path.read_text()
    cells = Cells()
    cells.feed(text)
    return text, cells


def test_it_stands_alone(tmp_path: Path) -> None:
    curve = {"step": range(1000), "effective_lr": [0.01] * 1000, "lr": [0.1] * 1000}
    text, _ = written(tmp_path / "r.html", results(), curves={"a < b": curve})
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)", text)
    assert not re.search(r'(src|href)="(?!#)', text)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 3  # scores, losses, and a curve
    for figure in figures:
        ElementTree.fromstring(figure)
    assert all(name in figures[0] for name in PAIRS)
    assert "a &lt; b" in figures[2]
    assert len(text) < 200_000
    again, _ = written(tmp_path / "again.html", results(), curves={"a < b": curve})
    assert again == text


def test_tables_are_the_measured_ones(tmp_path: Path) -> None:
    _, cells = written(tmp_path / "r.html", results())
    tolerated = sweep.tolerance(results(), 0.05).set_index("optimizer")
    at_random = sweep.at_random_lr(results(), 0.05, 0.1).set_index("optimizer")
    by_name = {row[0]: row for row in cells.rows[1:5]}
    assert list(by_name) == list(PAIRS)
    for name, row in by_name.items():
        assert row[1] == f"{tolerated['best'][name]:.4g}"
        width = tolerated["decades"][name]
        assert row[3] == (f"{width:.1f}" if width >= 0 else "none")
        assert row[6].startswith(f"{at_random['expected'][name]:.3g} (")
        assert row[7].startswith(f"{at_random['success'][name]:.0%} (")
    medians = cells.rows[5:]
    assert medians[0] == ["lr", *PAIRS]
    assert medians[-1] == ["1", "failed", "0.61", "failed", "0.81"]
    assert cells.near == ["0.81"] * 4


def test_losses_and_several_tasks(tmp_path: Path) -> None:
    both = pd.concat([results("one"), results("other")])
    how = {"higher_is_better": False, "column": "loss", "worst": {"one": 1.0, "other": 2.0}}
    text, cells = written(tmp_path / "r.html", both, **how)
    assert text.count("<svg") == 2
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["one", "other"]
    assert len(cells.rows) == 2 * (5 + 5)


def test_failures_have_their_traceback(tmp_path: Path) -> None:
    table = results()
    table.loc[0, ["status", "message", "traceback"]] = ("error", "<bad>", "Traceback: <bad>\nline")
    table.loc[1, ["status", "message"]] = ("error", "no more is known")
    text, _ = written(tmp_path / "r.html", table)
    assert "seed 0: &lt;bad&gt;</summary><pre>Traceback: &lt;bad&gt;\nline</pre>" in text
    assert "<pre>no more is known</pre>" in text
    assert "2 diverged or failed" not in text  # those of the last learning rate diverged
    assert "6 diverged or failed" in text


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["a <b> & c", "lr", 80 * "n", "AdamW + MoMo"]
    table = results().replace({"optimizer": dict(zip(PAIRS, names, strict=True))})
    _, cells = written(tmp_path / "r.html", table)
    assert [row[0] for row in cells.rows[1:5]] == names
    assert cells.rows[5] == ["lr", *names]


def test_grid_too_narrow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 9 are needed"):
        written(tmp_path / "r.html", results(), decades=9.0)
    assert not (tmp_path / "r.html").exists()
