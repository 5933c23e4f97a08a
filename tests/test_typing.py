"""The public types are what users will rely on."""

from __future__ import annotations

from pathlib import Path

from mypy import api

from tests.releases import needs_torch


@needs_torch(2, 8, "what mypy needs to know of torch.optim")
def test_public_types() -> None:
    root = Path(__file__).parents[1]
    settings = ["--config-file", str(root / "pyproject.toml"), "--no-error-summary"]
    report, errors, status = api.run([*settings, str(root / "tests" / "typing" / "api.py")])
    assert (report, errors, status) == ("", "", 0)


def test_marked_as_typed() -> None:
    assert (Path(__file__).parents[1] / "momo_wrap" / "py.typed").exists()
