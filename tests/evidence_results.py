"""Results of sweeps that are made up, for the tests of docs/evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from momo_wrap.sweep.results_file import COLUMNS

CONV, RESNET, TEXT = "digits, conv net", "digits, ResNet", "text, transformer"
RATES = [float(f"{10 ** (-4 + 2 * i / 3):.3g}") for i in range(10)]
NOISE = (-0.001, 0.0, 0.001)  # of the seeds
FAILED = math.nan

Values = Mapping[str, Sequence[float]]


def curve(*values: float, rest: float) -> list[float]:
    """Values at the lowest learning rates, then the same at all others."""
    return [*values, *[rest] * (len(RATES) - len(values))]


def runs(evidence: Any, task: str, values: Values) -> pd.DataFrame:
    """Three seeds of each method; bare optimizers that are not given are bad."""
    is_score = task in evidence.tasks.SCORED
    bad = 0.1 if is_score else 9.0
    given = {**{base: [bad] * len(RATES) for base in evidence.methods.BARE}, **values}
    rows = []
    for method, medians in given.items():
        for lr, median in zip(RATES, medians, strict=True):
            for seed, noise in enumerate(NOISE):
                row = {"task": task, "optimizer": method, "lr": lr, "seed": seed}
                status = "ok" if math.isfinite(median) else "diverged"
                value = median + noise
                score = value if is_score else FAILED
                rows.append({**row, "status": status, "score": score, "loss": value})
    return pd.DataFrame(rows)


def compare(evidence: Any, tasks: Mapping[str, Values]) -> Any:
    frames = [runs(evidence, task, values) for task, values in tasks.items()]
    return evidence.measures.Comparison(pd.concat(frames))


def save(evidence: Any, tasks: Mapping[str, Values], path: Path) -> None:
    """Write runs as a file of results."""
    frame = pd.concat([runs(evidence, task, values) for task, values in tasks.items()])
    frame = frame.reindex(columns=COLUMNS)
    frame[["results", "settings"]] = "{}"
    frame[["curve", "momo_wrap", "torch", "python", "message", "base"]] = ""
    frame.assign(seconds=1.0, wrapped=False).to_csv(path, index=False)
