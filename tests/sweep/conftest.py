"""The results of an undisturbed sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from momo_wrap.sweep.results_file import Run
from tests.sweep import shared
from tests.sweep.training import LOG


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs that begin leave a line."""
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[Run, float]:
    """The loss of each run of `shared`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOG, str(folder / "log"))
        return shared.losses(shared.run(folder / "sweep.csv"))
