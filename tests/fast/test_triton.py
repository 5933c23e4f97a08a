"""Kernels on accelerators: they take rows, sum up and write in one loop, and are in Triton."""

from __future__ import annotations

import importlib.util
import os
import re
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


NEEDS_TRITON = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]


def interpreted(*arguments: str) -> float:
    """Run the program that takes steps in Triton's interpreter; return what it prints."""
    program = [sys.executable, "-m", "tests.fast.triton_interpreter", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return float(ran.stdout)


class TestTriton:
    pytestmark = NEEDS_TRITON

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.skipif(TORCH < (2, 13), reason="Triton for the CPU is private to torch")
    @pytest.mark.parametrize("name", ["SGD-momentum", "AdamW", "NAdam", "RAdam", "Adamax"])
    def test_kernels_are_the_uncompiled_passes(self, name: str, form: str) -> None:
        """In float32, in two passes, and with moves ahead that a kernel corrects."""
        assert name in COMPILED
        assert interpreted(name, form) < 1e-5

    def test_corrections_are_those_of_torch(self) -> None:
        """Those of single blocks. The program compares more."""
        assert interpreted("correction") < 1e-6

    @pytest.mark.parametrize("has_root", [True, False])
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_correction_compiles_and_returns_at_once(self, dtype: str, *, has_root: bool) -> None:
        """For an H100: it branches before it reads any column."""
        code = ptx(dtype, has_root=has_root)
        before, _, after = code.partition(" bra ")
        # Columns are read and written under a mask.
        masked = r"@%p\d+ (ld|st)\.global"
        assert not re.search(masked, before)
        kinds = re.findall(masked, after)
        assert kinds.count("ld") == (3 if has_root else 2) * kinds.count("st") > 0


def ptx(dtype: str, *, has_root: bool) -> str:
    """Compile the kernel that corrects moves."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from momo_wrap.fast.correction_kernel import correction_kernel

    tables = ("addresses", "sizes", "firsts", "block_of_chunk")
    forms = {"length": 65536, "part": 2048, "has_root": has_root, "is_limited": True}
    types = {**dict.fromkeys(tables, "*i64"), "scales": f"*{dtype}", "blocks": "i32"}
    signature = {**types, **dict.fromkeys(forms, "constexpr")}
    source = ASTSource(fn=correction_kernel, signature=signature, constexprs=forms)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])
