"""What a wrapped step costs: time and temporary memory beside the bare base and momo-opt.

Every optimizer owns a copy of the same parameters and takes its steps in turn with the others, so
that all of them meet the same noise; the figure is the median over the rounds. Temporary memory is
the peak of what torch's allocator handed out during a step, measured in a step of its own.

    python examples/benchmarks/step_cost.py                        # 95 M parameters, 145 tensors
    python examples/benchmarks/step_cost.py --case small --rounds 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import momo
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from momo_wrap import MoMoWrapper

Shapes = list[tuple[int, ...]]

# Wrapped over the one beside it, as the project's targets have it.
COMPARED_WITH = {
    "AdamW(fused) wrapped": ("MomoAdam (momo-opt)", "AdamW(fused)"),
    "AdamW(foreach) wrapped": ("MomoAdam (momo-opt)", "AdamW(foreach)"),
    "SGD-M(fused) wrapped": ("Momo (momo-opt)", "SGD-M(fused)"),
}


def transformer_shapes(blocks: int = 12, width: int = 768) -> Shapes:
    """The tensors of a stack of transformer blocks without embeddings, and an output layer."""
    block: Shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return block * blocks + [(13107, width)]


CASES: dict[str, Callable[[], Shapes]] = {
    "transformer": transformer_shapes,
    "small": lambda: [(100,)] * 10_000,
    "one": lambda: [(100_000_000,)],
}


def optimizers() -> dict[str, Callable[[list[Tensor]], Optimizer]]:
    """Name to what makes each optimizer under test."""

    def adamw(params: list[Tensor], **how: Any) -> AdamW:
        return AdamW(params, lr=1e-4, weight_decay=0.0, **how)

    def sgd(params: list[Tensor], **how: Any) -> SGD:
        return SGD(params, lr=1e-4, momentum=0.9, dampening=0.9, **how)

    return {
        "AdamW(fused)": lambda p: adamw(p, fused=True),
        "AdamW(foreach)": lambda p: adamw(p, foreach=True),
        "AdamW(fused) wrapped": lambda p: MoMoWrapper(adamw(p, fused=True)),
        "AdamW(foreach) wrapped": lambda p: MoMoWrapper(adamw(p, foreach=True)),
        "MomoAdam (momo-opt)": lambda p: momo.MomoAdam(p, lr=1e-4),
        "SGD-M(fused)": lambda p: sgd(p, fused=True),
        "SGD-M(fused) wrapped": lambda p: MoMoWrapper(sgd(p, fused=True)),
        "Momo (momo-opt)": lambda p: momo.Momo(p, lr=1e-4),
    }


@dataclass
class Contender:
    """An optimizer with parameters and gradients of its own."""

    name: str
    optimizer: Optimizer
    needs_loss: bool

    @classmethod
    def make(cls, name: str, shapes: Shapes, seed: int) -> Contender:
        generator = torch.Generator().manual_seed(seed)
        params = [torch.randn(shape, generator=generator) for shape in shapes]
        for param in params:
            param.requires_grad_()
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer = optimizers()[name](params)
        return cls(name, optimizer, "wrapped" in name or "momo-opt" in name)

    def step(self) -> None:
        """Take one step; the loss is far above the bound, where all methods do all their work."""
        if self.needs_loss:
            self.optimizer.step(loss=torch.tensor(1.0))  # type: ignore[call-overload]
        else:
            self.optimizer.step()

    def seconds(self) -> float:
        """Wall time of a step."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def temporary_mib(self) -> float:
        """The most memory that torch had allocated at once during a step, beyond that before it."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        level = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            level += event.nbytes()
            peak = max(peak, level)
        return peak / 2**20


@dataclass
class Cost:
    """The measured cost of a step."""

    optimizer: str
    milliseconds: float
    over_momo_opt: float | None
    over_bare: float | None
    temporary_mib: float


def measure(shapes: Shapes, names: list[str], rounds: int, seed: int) -> list[Cost]:
    """Measure optimizers in turns.

    The families run one after the other, so that not all copies are in memory at once.
    """
    costs: list[Cost] = []
    for family in _families(names):
        contenders = [Contender.make(name, shapes, seed) for name in family]
        for contender in contenders:
            contender.step()  # makes the state
            contender.step()
        temporary = {c.name: c.temporary_mib() for c in contenders}
        times: dict[str, list[float]] = {name: [] for name in family}
        for _ in range(rounds):
            for contender in contenders:
                times[contender.name].append(contender.seconds())
        median = {name: statistics.median(values) for name, values in times.items()}
        for name in family:
            reference, bare = COMPARED_WITH.get(name, (None, None))
            costs.append(
                Cost(
                    name,
                    1e3 * median[name],
                    median[name] / median[reference] if reference in median else None,
                    median[name] / median[bare] if bare in median else None,
                    temporary[name],
                )
            )
    return costs


def _families(names: list[str]) -> Iterator[list[str]]:
    for family in (
        [name for name in names if "Adam" in name],
        [name for name in names if "Adam" not in name],
    ):
        if family:
            yield family


def table(costs: list[Cost]) -> str:
    """The costs as a Markdown table."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    lines = ["| optimizer | ms | / momo-opt | / bare | temporary MiB |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {cost.optimizer} | {number(cost.milliseconds, 1)} | {number(cost.over_momo_opt, 2)} "
        f"| {number(cost.over_bare, 2)} | {number(cost.temporary_mib, 1)} |"
        for cost in costs
    ]
    return "\n".join(lines)


def check(costs: list[Cost]) -> None:
    """Assert what the library promises: half of momo-opt's time, and little memory."""
    wrapped = next(cost for cost in costs if cost.optimizer == "AdamW(fused) wrapped")
    ratio = wrapped.over_momo_opt
    assert ratio is not None, "include MomoAdam to compare with"
    assert ratio <= 0.5, f"a step takes {ratio:.2f} of momo-opt's time, more than half"
    assert wrapped.temporary_mib <= 64, f"{wrapped.temporary_mib:.0f} MiB of temporary memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", choices=CASES, default="transformer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(optimizers()), help="some of them")
    parser.add_argument("--check", action="store_true", help="assert what the library promises")
    parser.add_argument("--json", type=Path, help="also write the raw result there")
    options = parser.parse_args()
    shapes = CASES[options.case]()
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    print(
        f"{elements / 1e6:.1f} M float32 parameters in {len(shapes)} tensors, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    costs = measure(shapes, options.only or list(optimizers()), options.rounds, options.seed)
    print(table(costs))
    if options.check:
        check(costs)
    if options.json:
        environment = {
            "case": options.case,
            "elements": elements,
            "tensors": len(shapes),
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "machine": platform.machine(),
        }
        result = {"environment": environment, "costs": [asdict(cost) for cost in costs]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
