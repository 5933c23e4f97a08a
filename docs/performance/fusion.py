"""Why the compiled passes are built as they are: the alternatives, beside the bare fused step.

The first pass of a step has to write the new state and to sum over it. The generator of CPU code in
torch's compiler makes one loop of it only if the sum reads what was written, which its default
options prevent. Timed in turns are that pass with both options, the pass that moves, a sum over a
state that the base has advanced before, and a bare step.

    python -m docs.performance.fusion --json fusion.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from docs.performance.report import environment

ONE_LOOP = {"realize_reads_threshold": 0}
Run = Callable[[int], object]


def adam_advance(grad: Tensor, m: Tensor, v: Tensor, scale: Tensor, eps: Tensor) -> Tensor:
    """Advance Adam's moments and return ⟨m, m / (scale sqrt(v) + eps)⟩."""
    m.copy_(torch.lerp(m, grad, 0.1))
    v.copy_(v * 0.999 + 0.001 * grad * grad)
    return adam_sum(m, v, scale, eps)


def adam_sum(m: Tensor, v: Tensor, scale: Tensor, eps: Tensor) -> Tensor:
    """Return ⟨m, m / (scale sqrt(v) + eps)⟩."""
    return (m * m / (v.sqrt() * scale + eps)).sum(dtype=torch.float64)


def adam_move(x: Tensor, m: Tensor, v: Tensor, scale: Tensor, eps: Tensor, pull: Tensor) -> None:
    """Move parameters along Adam's direction."""
    x.sub_(m / (v.sqrt() * scale + eps) * pull)


def sgd_advance(grad: Tensor, buffer: Tensor, decay: Tensor) -> Tensor:
    """Advance SGD's buffer and return its squared norm."""
    buffer.copy_(buffer * decay + grad * (1.0 - decay))
    return (buffer * buffer).sum(dtype=torch.float64)


def sgd_move(x: Tensor, buffer: Tensor, pull: Tensor) -> None:
    """Move parameters along the buffer."""
    x.sub_(buffer * pull)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a pass, for any length of its tensors."""
    settings: dict[str, Any] = {"dynamic": True, "fullgraph": True, "options": options}
    return torch.compile(function, **settings)


def contenders(family: str, elements: int, tensors: int) -> dict[str, Callable[[], object]]:
    """Name to what is timed, for one family of optimizers."""

    def column() -> list[Tensor]:
        return [torch.rand(elements) for _ in range(tensors)]

    def over_all(run: Run) -> Callable[[], object]:
        return lambda: [run(i) for i in range(tensors)]

    params, grads, m, v, target = column(), column(), column(), column(), torch.empty(elements)
    for param, grad in zip(params, grads, strict=True):
        param.requires_grad_().grad = grad
    scale, eps, pull, decay = (torch.tensor(x) for x in (1.0, 1e-8, 1e-9, 0.9))
    copy: Run = lambda i: target.copy_(grads[i])  # noqa: E731
    if family == "AdamW":
        two, one = compiled(adam_advance), compiled(adam_advance, **ONE_LOOP)
        added, move = compiled(adam_sum), compiled(adam_move)
        base: Any = AdamW(params, lr=1e-9, weight_decay=0.0, fused=True)
        runs: dict[str, Run] = {
            "advance and sum, default options": lambda i: two(grads[i], m[i], v[i], scale, eps),
            "advance and sum, one loop": lambda i: one(grads[i], m[i], v[i], scale, eps),
            "sum alone": lambda i: added(m[i], v[i], scale, eps),
            "move": lambda i: move(params[i], m[i], v[i], scale, eps, pull),
        }
    else:
        two, one = compiled(sgd_advance), compiled(sgd_advance, **ONE_LOOP)
        move = compiled(sgd_move)
        base = SGD(params, lr=1e-9, momentum=0.9, dampening=0.9, fused=True)
        runs = {
            "advance and sum, default options": lambda i: two(grads[i], m[i], decay),
            "advance and sum, one loop": lambda i: one(grads[i], m[i], decay),
            "sum alone": lambda i: torch.dot(m[i], m[i]),
            "move": lambda i: move(params[i], m[i], pull),
        }
    named = {name: over_all(run) for name, run in {**runs, "copy": copy}.items()}
    return {"bare fused step": base.step, **named}


@torch.no_grad()
def measure(family: str, elements: int, tensors: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each contender."""
    timed = contenders(family, elements, tensors)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 2):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            if number >= 2:  # the first rounds compile
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def table(families: dict[str, dict[str, float]]) -> str:
    """The costs as a Markdown table."""
    lines = ["| pass | ms | / bare fused step |", "|---|--:|--:|"]
    for family, costs in families.items():
        lines += [
            f"| {family}: {name} | {cost:.1f} | {cost / costs['bare fused step']:.2f} |"
            for name, cost in costs.items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=8_000_000, help="in a tensor")
    parser.add_argument("--tensors", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="also write the raw result there")
    options = parser.parse_args()
    families = {
        family: measure(family, options.elements, options.tensors, options.rounds)
        for family in ("AdamW", "SGD-M")
    }
    print(table(families))
    if options.json:
        result = {
            "families": families,
            "elements": options.elements,
            "tensors": options.tensors,
            "environment": environment(torch.device("cpu"), options.rounds, 0),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
