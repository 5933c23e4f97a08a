"""The benchmark's results: where and when they were measured, as JSON, and as Markdown tables."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from docs.performance.costs import Cost, Growth


@dataclass(frozen=True)
class CaseResult:
    """What was measured in one case."""

    environment: dict[str, Any]
    elements: int
    tensors: int
    dtype: str
    bandwidth: float  # bytes per second
    costs: list[Cost]

    @classmethod
    def of(cls, raw: dict[str, Any]) -> CaseResult:
        """Read it back from JSON."""
        return cls(**{**raw, "costs": [Cost(**cost) for cost in raw["costs"]]})


@dataclass(frozen=True)
class ScaleResult:
    """How the time of a step grew, by what grew: "elements" of one tensor, or equal "tensors"."""

    environment: dict[str, Any]
    growths: dict[str, list[Growth]]

    @classmethod
    def of(cls, raw: dict[str, Any]) -> ScaleResult:
        """Read it back from JSON."""
        growths = {what: [Growth(**g) for g in grown] for what, grown in raw["growths"].items()}
        return cls(raw["environment"], growths)


@dataclass(frozen=True)
class Results:
    """The content of a result file."""

    cases: dict[str, CaseResult]
    scale: ScaleResult | None = None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a result file; one that is not there yet is empty."""
        raw = json.loads(path.read_text()) if path.exists() else {"cases": {}, "scale": None}
        cases = {name: CaseResult.of(case) for name, case in raw["cases"].items()}
        return cls(cases, ScaleResult.of(raw["scale"]) if raw["scale"] else None)

    def save(self, path: Path) -> None:
        """Write a result file, which is whole at any time."""
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(path)


def environment(device: torch.device, rounds: int, seed: int) -> dict[str, Any]:
    """Say where, when and how something was measured."""
    return {
        "device": device.type,
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": rounds,
        "seed": seed,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        if models:
            return models[0]
    return platform.processor() or platform.machine()


def heading(name: str, result: CaseResult) -> str:
    """Say what was stepped over, and on what."""
    where = result.environment
    return (
        f"{name}: {result.elements / 1e6:.1f} M {result.dtype} parameters in {result.tensors} "
        f"tensors, {where['device_name']}, {where['threads']} threads, torch {where['torch']}, "
        f"copies at {result.bandwidth / 1e9:.1f} GB/s"
    )


def noise(costs: Sequence[Cost]) -> str | None:
    """Say of which optimizers the times are too far apart to be relied on; None: of none.

    With as many threads as cores, one other busy process can make a step many times slower.
    """
    noisy = [c.optimizer for c in costs if c.quartiles[2] - c.quartiles[0] > 0.3 * c.milliseconds]
    return f"Not a quiet machine: quartiles far apart for {', '.join(noisy)}." if noisy else None


COLUMNS: dict[str, Callable[[Cost], str]] = {
    "ms": lambda cost: _number(cost.milliseconds, 1 if cost.milliseconds >= 10 else 3),
    "/ fused": lambda cost: _number(cost.over_fused, 2),
    "/ foreach": lambda cost: _number(cost.over_foreach, 2),
    "/ momo-opt": lambda cost: _number(cost.over_momo_opt, 2),
    "/ limit": lambda cost: _number(cost.over_limit, 2),
    "temporary MiB": lambda cost: _number(cost.temporary_mib, 1),
}
FORESEEN: dict[str, Callable[[Cost], str]] = {
    "foreseen": lambda cost: _number(cost.foreseen, 2),
}
CUDA_COLUMNS: dict[str, Callable[[Cost], str]] = {
    "launches": lambda cost: _number(cost.launches, 0),
    "synchronisations": lambda cost: _number(cost.synchronisations, 0),
}


def table(costs: Sequence[Cost], names: Sequence[str] | None = None) -> str:
    """The costs as a Markdown table.

    Args:
        costs: The costs in a case.
        names: Of which optimizers; None: of all.
    """
    columns = dict(COLUMNS)
    if any(cost.foreseen is not None for cost in costs):
        columns |= FORESEEN
    if any(cost.launches is not None for cost in costs):
        columns |= CUDA_COLUMNS
    rows = [
        [cost.optimizer, *(entry(cost) for entry in columns.values())]
        for cost in costs
        if names is None or cost.optimizer in names
    ]
    return _markdown(["optimizer", *columns], rows)


def scale_table(what: str, growths: Sequence[Growth]) -> str:
    """How the time grew with the elements or the tensors, as a Markdown table."""
    sizes = growths[0].sizes
    rows = [
        [growth.optimizer, *(f"{ms:.3f}" for ms in growth.milliseconds), f"{growth.slope:.2f}"]
        for growth in growths
    ]
    return _markdown([f"ms at {what} =", *(f"{size:,}" for size in sizes), "slope"], rows)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, f"|---|{'--:|' * (len(header) - 1)}")
    return "\n".join(lines)
