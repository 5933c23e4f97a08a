"""Kernels on accelerators: they take rows, sum up and write in one loop, and are in Triton."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.optim import SGD

from momo_wrap import MoMoWrapper
from momo_wrap.rules import WeightDecayForm
from tests.cases import Case
from tests.fast.test_engine import assert_equals_uncompiled
from tests.fast.triton_interpreter import in_rows
from tests.mixture import COMPILED, FEW, wrapped
from tests.releases import TORCH

FORMS: tuple[WeightDecayForm, ...] = ("proximal", "base")


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("case", "form"), [*zip(FEW, FORMS, strict=True)], ids=str)
def test_rows_are_the_flat_kernels(case: Case, form: WeightDecayForm) -> None:
    """In rows by the compiler for the CPU, in float64."""
    with in_rows() as ran:
        assert_equals_uncompiled(lambda compiled: wrapped(case, compiled, form=form), 1e-12)
    assert set(ran) == {True, False}


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_parameters_with_gaps_in_rows() -> None:
    ends = []
    for compiled in (True, False):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(1200, generator=generator)[::2], torch.zeros(600)]
        optimizer = MoMoWrapper(SGD(params, lr=0.1, momentum=0.9), compiled=compiled)
        for step in range(4):
            for param in params:
                param.grad = torch.linspace(0.1, 1.0 + step, 600)
            with in_rows() as ran:
                optimizer.step(loss=1.0)
        assert compiled == (True in ran)
        ends.append(torch.cat(params))
    torch.testing.assert_close(*ends)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.skipif(TORCH < (2, 13), reason="Triton for the CPU is private to torch")
@pytest.mark.parametrize("name", ["SGD-momentum", "AdamW", "NAdam", "RAdam", "Adamax"])
def test_triton_kernels_are_the_uncompiled_passes(name: str, form: str) -> None:
    """Run by Triton's interpreter, in float32."""
    assert name in COMPILED
    program = [sys.executable, "-m", "tests.fast.triton_interpreter", name, form]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert float(ran.stdout) < 1e-5
