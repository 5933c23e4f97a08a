"""The fast path is an optional wing: without its folder everything works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import momo_wrap

# Imports every module of the package, and trains with each choice.
SCRIPT = """
import importlib, math, pkgutil, sys, warnings
import torch
import momo_wrap
from momo_wrap import MoMo, MoMoWrapper, TrustedMoMo

assert momo_wrap.__file__.startswith(sys.argv[1]), momo_wrap.__file__
names = [m.name for m in pkgutil.walk_packages(momo_wrap.__path__, "momo_wrap.", onerror=print)]
assert len(names) > 30, names
assert not any(name.startswith("momo_wrap.fast") for name in names), names
for name in names:
    if not name.startswith(("momo_wrap.integrations.", "momo_wrap.sweep.")):
        importlib.import_module(name)
ends = []
for compiled in ("auto", True, False):
    torch.manual_seed(0)
    params = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    optimizer = MoMoWrapper(torch.optim.AdamW(params, lr=0.1), MoMo(), compiled=compiled)
    for _ in range(3):
        loss = sum(param.square().sum() for param in params)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    optimizer.compiled = True
    optimizer.rule = TrustedMoMo()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(loss=loss)
    ends.append(torch.cat([param.detach().reshape(-1) for param in params]))
assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
assert not any(name.startswith("momo_wrap.fast") for name in sys.modules)

from momo_wrap.testing import check_adapter
checked = check_adapter(
    lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.5),
    skip={"proposing", "groups", "late group", "bfloat16", "resume", "blocks"},
)
assert "bare" in checked and "compiled" not in checked, checked
print("works")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    source = Path(momo_wrap.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, tmp_path / "momo_wrap", ignore=ignored)
    shutil.rmtree(tmp_path / "momo_wrap" / "fast")
    return tmp_path


def test_everything_works_without_the_folder(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SCRIPT,
         str(package)],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "works"
