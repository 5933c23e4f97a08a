"""The output for a bug report."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import momo_wrap
from momo_wrap import about
from momo_wrap.fast import kernels

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a failure, so that nothing is compiled."""
    monkeypatch.setattr(kernels, "failures", {"cpu": "No compiler\n  was found"})


def told(output: str) -> dict[str, str]:
    """Return the printed lines, by their first word."""
    return dict(re.split(r":\s+", line, maxsplit=1) for line in output.splitlines())


@pytest.mark.usefixtures("without_compiler")
def test_info_tells_versions_devices_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    momo_wrap.info()
    found = told(capsys.readouterr().out)
    assert found["momo_wrap"] == momo_wrap.__version__
    assert found["torch"] == torch.__version__
    assert found["Python"] == f"{platform.python_version()} ({platform.python_implementation()})"
    assert found["platform"] == platform.platform()
    assert f"numpy {version('numpy')}" in found["packages"].split(", ")
    assert "pytest" not in found["packages"]
    assert found["devices"].startswith("cpu (")
    assert ("cuda" in found["devices"]) == torch.cuda.is_available()
    assert found["threads"].startswith(f"{torch.get_num_threads()} in operations")
    assert found["compiled"] == "cpu: no: No compiler was found"


@pytest.mark.usefixtures("without_compiler")
def test_info_without_optional_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(about, "_OPTIONAL", ("no-such-package-anywhere",))
    momo_wrap.info()
    assert told(capsys.readouterr().out)["packages"] == "none"


def compiled(capsys: pytest.CaptureFixture[str]) -> str:
    momo_wrap.info()
    return told(capsys.readouterr().out)["compiled"]


def test_info_tells_that_compiling_is_disabled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "failures", {})
    with torch._dynamo.config.patch(disable=True):
        assert compiled(capsys).startswith("cpu: no: torch.compile is disabled")


def test_info_tells_why_compiling_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("Python.h:\n not found")

    monkeypatch.setattr(kernels, "failures", {})
    monkeypatch.setattr(kernels, "_kernel", fails)
    monkeypatch.setattr(kernels, "count", lambda: 0)
    assert compiled(capsys) == "cpu: no: Python.h: not found"


def test_info_tells_that_steps_are_watched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    monkeypatch.setattr(kernels, "failures", {})
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: step(self, *args))
    assert compiled(capsys).startswith("cpu: no: something else watches or replaces the steps")


def test_info_tells_that_a_step_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of this device")

    monkeypatch.setattr(kernels, "failures", {})
    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    assert compiled(capsys) == "cpu: no: a step raises ZeroDivisionError: of this device"


def test_info_knows_the_packages_of_the_extras() -> None:
    """Except the ones that only tests need."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    wanted = [name for extra in ("sweep", "integrations", "frameworks") for name in extras[extra]]
    names = {re.split(r"[^a-z0-9-]", name)[0] for name in wanted} - {"momo"}
    assert names <= set(about._OPTIONAL)


@pytest.mark.slow
def test_module_prints_the_report_and_compiles() -> None:
    command = [sys.executable, "-m", "momo_wrap"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = told(done.stdout)
    assert found["momo_wrap"] == momo_wrap.__version__
    assert found["compiled"] == "cpu: yes"
