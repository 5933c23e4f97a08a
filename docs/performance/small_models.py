"""What a step costs where the number of operations counts: small models, many parameter groups.

Prints, for a net of 6 small tensors, the operations of a step beyond those of the bare optimizer,
and the files, functions and calls of the package that a step goes through, which are the same on
every machine; and the time of a step over that of the bare one, also for hundreds of parameter
groups, as the least of many short runs in turn.

    python -m docs.performance.small_models --json docs/performance/results/small_models.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import momo
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import momo_wrap
from momo_wrap import MoMo, MoMoWrapper, StepRule, TrustedMoMo

PACKAGE = os.path.dirname(momo_wrap.__file__) + os.sep
TINY = [(32, 16), (32,), (32, 32), (32,), (10, 32), (10,)]
LOSS = torch.tensor(2.0)
# TrustedMoMo measures each of the first 100 steps, then each third.
FIRST, EACH = 103, 3

Step = Callable[[], Any]


class Operations(TorchDispatchMode):
    """Counts tensor operations, views among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def parameters(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Parameters with gradients."""
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = 0.01 * torch.randn_like(param)
    return params


def groups(count: int) -> list[dict[str, Any]]:
    """A parameter group for each of many small tensors."""
    return [{"params": [param]} for param in parameters([(64,)] * count)]


def bare(optimizer: Optimizer) -> Step:
    """The step of an optimizer as it is."""
    return optimizer.step


def wrapped(optimizer: Optimizer, rule: StepRule) -> Step:
    """The step of a wrapped optimizer."""
    return partial(MoMoWrapper(optimizer, rule).step, loss=LOSS)


def momo_adam() -> Step:
    """The step of momo-opt's own optimizer."""
    return partial(momo.MomoAdam(parameters(TINY), lr=1e-3).step, loss=LOSS)


def operations(step: Step) -> int:
    """The mean operations of a step in steady state."""
    for _ in range(FIRST):
        step()
    mode = Operations()
    with mode:
        for _ in range(EACH):
            step()
    return round(mode.count / EACH)


def calls(step: Step) -> dict[str, int]:
    """The files, functions and calls of the package in a step; comprehensions are calls only."""
    seen: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            seen.append((frame.f_code.co_filename, frame.f_code.co_name))

    for _ in range(4):
        step()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    functions = {call for call in seen if not call[1].startswith("<")}
    return {"files": len({f for f, _ in seen}), "functions": len(functions), "calls": len(seen)}


def times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Milliseconds of each step in steady state, the least of `rounds` runs in turn."""
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        for _ in range(FIRST):
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(EACH):
                step()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / EACH)
    return best


def measure(rounds: int) -> dict[str, Any]:
    """All figures."""
    rules: dict[str, Callable[[], StepRule]] = {"MoMo": MoMo, "TrustedMoMo": TrustedMoMo}

    def steps(make: Callable[[], Optimizer]) -> dict[str, Step]:
        found = {name: wrapped(make(), rule()) for name, rule in rules.items()}
        return {"bare": bare(make()), **found}

    counts = {
        name: operations(step) for name, step in steps(lambda: AdamW(parameters(TINY))).items()
    }
    tiny = {**steps(lambda: AdamW(parameters(TINY))), "MomoAdam (momo-opt)": momo_adam()}
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "operations": counts,
        "SGD step": calls(wrapped(SGD(parameters(TINY), momentum=0.9), MoMo())),
        "AdamW step": calls(wrapped(AdamW(parameters(TINY)), MoMo())),
        "milliseconds": {
            "6 tensors, AdamW": times(tiny, 10 * rounds),
            "302 groups, AdamW": times(steps(lambda: AdamW(groups(302))), rounds),
            "465 groups, AdamW(fused)": times(
                steps(lambda: AdamW(groups(465), fused=True)), rounds
            ),
        },
    }


def table(result: dict[str, Any]) -> str:
    """The times as a table of the documentation."""
    lines = ["| case | bare ms | MoMo / bare | TrustedMoMo / bare | MomoAdam / bare |"]
    lines.append("|---|--:|--:|--:|--:|")
    for case, milliseconds in result["milliseconds"].items():
        names = ("MoMo", "TrustedMoMo", "MomoAdam (momo-opt)")
        own = milliseconds["bare"]
        ratios = [f"{milliseconds[n] / own:.2f}" if n in milliseconds else "" for n in names]
        lines.append(f"| {case} | {own:.2f} | " + " | ".join(ratios) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where the raw result goes")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    result = measure(options.rounds)
    counts = result["operations"]
    for name in ("MoMo", "TrustedMoMo"):
        print(f"operations beyond the base's, {name}: {counts[name] - counts['bare']}")
    for name in ("SGD step", "AdamW step"):
        print(f"{name}: {result[name]}")
    for case, milliseconds in result["milliseconds"].items():
        ratios = {
            k: f"{v:.3f} ms, x {v / milliseconds['bare']:.2f}" for k, v in milliseconds.items()
        }
        print(f"{case}: {ratios}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
