"""Access to the scripts in examples/, which are in no package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script, and let it find the modules beside it."""
    path = EXAMPLES / f"{name}.py"
    monkeypatch.syspath_prepend(str(path.parent))
    return importlib.import_module(path.stem)
