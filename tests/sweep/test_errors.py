"""Each mistake raises an error that names the line to write instead."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from momo_wrap import sweep
from tests.sweep.training import bare, quadratic

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"train": 3}, TypeError, "Expected functions by name, got {'train': 3}"),
    ({"train": {}}, ValueError, "train must have values, and each once, got []"),
    (
        {"train": lambda *_: {}, "processes": 1},
        TypeError,
        "Other processes can't be sent the functions",
    ),
    ({"optimizers": {"a": lambda *_: None}, "processes": 1}, TypeError, "top level of a module"),
    ({"optimizers": [bare]}, TypeError, 'optimizers must be functions by name, {"AdamW": adamw}'),
    ({"learning_rates": [0.1, 0.1]}, ValueError, "and each once, got [0.1, 0.1]"),
    ({"learning_rates": []}, ValueError, "learning_rates must have values"),
    ({"learning_rates": [0.0]}, ValueError, "must be positive and finite, got [0.0]"),
    ({"learning_rates": ["fast"]}, ValueError, "could not convert string to float: 'fast'"),
    ({"seeds": [0.5]}, TypeError, "'float' object cannot be interpreted as an integer"),
    ({"settings": {"net": [1, 2]}}, TypeError, "'net' must be a number"),
    ({"settings": {"seed": 1}}, ValueError, "['seed'] can't be given: there are such columns"),
    ({"processes": -1}, ValueError, "Expected processes >= 0 and threads >= 1, got -1, 1"),
    ({"threads": 0}, ValueError, "Expected processes >= 0 and threads >= 1, got 0, 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = tmp_path / "sweep.csv"
    right = {"train": quadratic, "optimizers": {"SGD": bare}, "learning_rates": [0.1], "seeds": [0]}
    with pytest.raises(error, match=re.escape(message)):
        sweep.run(**{**right, "path": path, "processes": 0, **change})
    assert not path.exists()


def test_function_that_other_processes_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a notebook, whose functions are in `__main__` here and nowhere there."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "only_here", _only_here, raising=False)
    monkeypatch.setattr(_only_here, "__module__", "__main__")
    monkeypatch.setattr(_only_here, "__qualname__", "only_here")
    train: dict[str, sweep.Train] = {"here": partial(quadratic), "only here": _only_here}
    with pytest.raises(RuntimeError, match=r"exit code 1 before its first run.*From a notebook"):
        sweep.run(train, {"SGD": bare}, [0.1], [0], tmp_path / "s.csv", processes=1)
    assert "AttributeError: Can't get attribute 'only_here'" in capfd.readouterr().err


def _only_here(lr: float, _make_optimizer: sweep.OptimizerFactory, seed: int) -> dict[str, Any]:
    return {"loss": lr, "given": seed}


SCRIPT = """
from momo_wrap import sweep
from tests.sweep.training import bare, quadratic
sweep.run(quadratic, {"SGD": bare}, [0.1], [0], "sweep.csv", processes=1)
"""


@pytest.mark.slow
def test_script_without_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'must call run under `if __name__ == "__main__":`' in done.stderr


IMPORTS = """
import sys
sys.modules["pandas"] = None
import momo_wrap
assert not {"matplotlib", "momo_wrap.sweep"} & set(sys.modules)
try:
    import momo_wrap.sweep
except ImportError as error:
    print(error)
"""


def test_import_without_the_extra() -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "needs pandas, which is not installed: pip install momo_wrap[sweep]" in done.stdout
