"""What a step would ask of a CUDA device: launches, bytes, memory, synchronizations. Counted.

Nothing runs on a GPU, so nothing is timed: steps are taken on fake tensors, and what torch's code
for CUDA would do for each operation is counted. Of compiled passes, the Triton code for an H100 is
generated and read, which needs the package triton, without its GPU:

    pip install --no-deps triton
    python -m docs.performance.launches --json docs/performance/results/launches.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from docs.performance.cases import CASES, Case
from docs.performance.contenders import ADAM, FORMS, SGD_M, Family
from docs.performance.fake_cuda import Counter, fake_cuda
from docs.performance.small_models import TINY
from docs.performance.triton_code import Kernel, kernels_of
from momo_wrap import MoMoWrapper, TrustedMoMo
from momo_wrap.engine.passes import Move
from momo_wrap.fast import CompiledEngine, correction, kernels
from momo_wrap.fast.updates import Update

WARM_UP_STEPS = 3
# The model of a time: an eager launch costs the host some 5 µs, and an H100's memory moves 3 TB/s.
SECONDS_PER_LAUNCH, BYTES_PER_SECOND = 5e-6, 3e12

COUNTED = {
    "transformer": CASES["transformer"],
    "billion": CASES["billion"],
    "bf16": CASES["bf16"],
    "small": CASES["small"],
    "tiny": Case(TINY),
}
# A step with another θ than expected, and one without an expectation.
CORRECTED, IN_TWO_PASSES = "corrected", "two passes"
Make = Callable[[list[Tensor]], Optimizer]


@dataclass(frozen=True)
class Count:
    """What one step asks of the device.

    Attributes:
        optimizer: Its name.
        launches: Kernels, and copies from the host.
        bytes_per_param: What these read and write, for each parameter.
        temporary_mib: The most memory that the step allocates at once.
        synchronizations: How often the host waits for the device.
    """

    optimizer: str
    launches: int
    bytes_per_param: float
    temporary_mib: float
    synchronizations: int

    def milliseconds(self, params: int) -> float:
        """The time by the model: that of the host or that of the memory, whichever is longer."""
        moved = self.bytes_per_param * params / BYTES_PER_SECOND
        return 1e3 * max(self.launches * SECONDS_PER_LAUNCH, moved)


class GeneratedKernels:
    """Takes the place of compiled kernels: counts what they would launch and move.

    Args:
        counter: Counts everything else, and them.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._known: dict[object, list[Kernel]] = {}
        self._compile: Callable[..., Any] = kernels._kernel.__wrapped__

    def __call__(self, *key: Any) -> Callable[..., Any]:
        with mock.patch("torch.compile", lambda function, **given: (function, given)):
            function, settings = self._compile(*key)
        return partial(self._run, key, function, settings["options"])

    def _run(self, key: object, function: Any, options: Any, columns: Any, *others: Any) -> Any:
        if key not in self._known:
            with _disable_current_modes():
                given = torch.utils._pytree.tree_map(_real, (columns, *others))
                self._known[key] = kernels_of(function, given, options)
        sizes = [its["buffer"].numel() for its in columns]
        # All but those that sum up what the rows of a block have given.
        large = [kernel for kernel in self._known[key] if 64 * kernel.elements > max(sizes)]
        was_paused, self._counter.is_paused = self._counter.is_paused, True
        result = function(columns, *others)
        self._counter.is_paused = was_paused
        if not was_paused:
            moved = sum(kernel.bytes_per_element for kernel in large) * sum(sizes) / len(sizes)
            self._counter.launches += len(self._known[key])
            self._counter.bytes += round(moved)
        return result


class CorrectionKernel:
    """Takes the place of the kernel that corrects moves ahead: counts it.

    Args:
        counter: Counts everything else, and it.
        corrects: Whether the moves were wrong, so it does not return at once.
    """

    def __init__(self, counter: Counter, *, corrects: bool) -> None:
        self._counter, self._corrects = counter, corrects
        self._host: Callable[..., None] = correction.correct

    def __call__(self, update: Update, moves: Sequence[Move], kept: dict[object, Any]) -> None:
        with mock.patch("momo_wrap.fast.correction_kernel.correction_kernel") as kernel:
            self._host(update, moves, kept)
        if self._counter.is_paused:
            return
        (launched,) = kernel.__getitem__.return_value.call_args_list
        # It reads x, B and v, and writes x.
        moved = 4 if launched.kwargs["has_root"] else 3
        its_bytes = [b.numel * b.pieces["param"][0].itemsize for b, _, _ in moves]
        self._counter.launches += 1
        self._counter.bytes += moved * sum(its_bytes) if self._corrects else 0


def _real(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


def contenders(family: Family, *, compiled: bool) -> dict[str, tuple[Make, bool]]:
    """The optimizers by name, and whether their step takes a loss."""
    found: dict[str, tuple[Make, bool]] = {}
    for form in ("foreach", "fused"):
        make = partial(family.make_base, **FORMS[form])
        found[family.bare(form)] = make, False

        def wrapped(params: list[Tensor], make: Any = make, **settings: Any) -> Optimizer:
            return MoMoWrapper(make(params), **settings)

        found[f"{family.bare(form)} wrapped"] = partial(wrapped, compiled=False), True
    if compiled:
        found[f"{family.bare('fused')} wrapped, compiled"] = partial(wrapped, compiled=True), True
        for form in (CORRECTED, IN_TWO_PASSES):
            name = f"{family.bare('fused')} wrapped, {form}"
            found[name] = partial(wrapped, compiled=True), True
    measured = partial(wrapped, rule=TrustedMoMo(), compiled=compiled)
    found[f"{family.bare('fused')} wrapped, measured"] = measured, True
    found[family.momo_opt] = family.make_momo_opt, True
    return found


def count(name: str, make: Make, takes_loss: bool, case: Case) -> Count:
    """Count what a step in steady state asks of the device."""
    counter = Counter()
    generated = GeneratedKernels(counter)
    corrections = CorrectionKernel(counter, corrects=name.endswith(CORRECTED))
    two_passes = mock.patch.object(CompiledEngine, "foresees", False)
    with (
        two_passes if name.endswith(IN_TWO_PASSES) else nullcontext(),
        fake_cuda(),
        mock.patch.object(kernels, "_kernel", generated),
        mock.patch.object(kernels, "can_compile", return_value=True),
        mock.patch.object(correction, "correct", corrections),
        counter,
    ):
        counter.is_paused = True
        like: dict[str, Any] = {"device": "cuda", "dtype": case.dtype}
        params = [nn.Parameter(torch.empty(shape, **like)) for shape in case.shapes]
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer, loss = make(params), torch.empty((), device="cuda")  # type: ignore[arg-type]
        step: Any = partial(optimizer.step, loss=loss) if takes_loss else optimizer.step
        for _ in range(WARM_UP_STEPS):
            step()
        counter.is_paused = False
        step()
    bytes_per_param = counter.bytes / case.elements
    mib = counter.temporary / 2**20
    return Count(name, counter.launches, bytes_per_param, mib, counter.synchronizations)


def counts(case: Case, *, compiled: bool) -> list[Count]:
    """Count all optimizers in a case."""
    return [
        count(name, make, takes_loss, case)
        for family in (ADAM, SGD_M)
        for name, (make, takes_loss) in contenders(family, compiled=compiled).items()
    ]


def table(found: Sequence[Count], params: int) -> str:
    """The counts of a case as a table of the documentation."""
    lines = [
        "| optimizer | launches | bytes / parameter | temporary MiB | synchronizations "
        "| model, ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {its.optimizer} | {its.launches:,} | {its.bytes_per_param:.1f} "
        f"| {its.temporary_mib:.1f} | {its.synchronizations} | {its.milliseconds(params):.2f} |"
        for its in found
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print, and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", nargs="+", choices=list(COUNTED), default=list(COUNTED))
    parser.add_argument("--uncompiled", action="store_true", help="without triton")
    parser.add_argument("--json", type=Path, help="where the raw result goes, beside other cases")
    options = parser.parse_args(arguments)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    result: dict[str, Any] = {"torch": torch.__version__, "cases": known.get("cases", {})}
    for name in options.case:
        case = COUNTED[name]
        found = counts(case, compiled=not options.uncompiled)
        print(f"{name}: {len(case.shapes)} tensors\n\n{table(found, case.elements)}", flush=True)
        result["cases"][name] = {"elements": case.elements, "counts": [asdict(c) for c in found]}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
