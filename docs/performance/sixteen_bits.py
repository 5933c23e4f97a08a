"""Whether a second rounding to bfloat16 does harm, in steps that were moved ahead wrongly.

    python -m docs.performance.sixteen_bits --json docs/performance/results/sixteen_bits.json

trains a small net of bfloat16 parameters on scikit-learn's digits, by AdamW(fused) wrapped, once
moving ahead and once in two passes, from the same seeds. A minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from momo_wrap import MoMo, MoMoWrapper, TrustedMoMo
from momo_wrap.fast import choice
from momo_wrap.fast.stepping import SteppingEngine

SEEDS = range(8)
STEPS = 600
CASES = [("MoMo", lr) for lr in (0.003, 0.01, 0.03, 0.1)] + [("TrustedMoMo", 100.0)]
RULES = {"MoMo": MoMo, "TrustedMoMo": TrustedMoMo}
_TRAINING = 1400


def train(rule: str, lr: float, seed: int) -> dict[str, float]:
    """Train once, and return the training loss, and in how many steps θ was not foreseen."""
    from sklearn.datasets import load_digits  # the tables need it not

    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs / 16.0, dtype=torch.bfloat16), torch.tensor(targets)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(torch.bfloat16)
    base = torch.optim.AdamW(net.parameters(), lr=lr, fused=True)
    optimizer = MoMoWrapper(base, RULES[rule](), compiled=False)
    moved = wrong = 0
    expects = False
    for _ in range(STEPS):
        rows = torch.randint(0, _TRAINING, (64,))
        loss = nn.functional.cross_entropy(net(x[rows]).float(), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        came_true = optimizer._memory.reach is not None
        moved, wrong = moved + expects, wrong + (expects and not came_true)
        expects = came_true
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(x[:_TRAINING]).float(), y[:_TRAINING])
    return {"loss": loss.item(), "moved": moved, "wrong": wrong}


def measure() -> dict[str, Any]:
    """Run all cases, moving ahead and in two passes."""
    torch.set_num_threads(1)
    found = []
    for rule, lr in CASES:
        with patch.object(choice, "_WORTH_FORESEEING", 0):
            ahead = [train(rule, lr, seed) for seed in SEEDS]
            with patch.object(SteppingEngine, "foresees", False):
                two = [train(rule, lr, seed) for seed in SEEDS]
        found.append({"rule": rule, "lr": lr, "ahead": ahead, "two passes": two})
    return {"torch": torch.__version__, "steps": STEPS, "cases": found}


def table(results: dict[str, Any]) -> str:
    """Return the means, with the standard deviation over seeds, as a Markdown table."""
    lines = [
        "| rule, lr | moved ahead | of them wrongly | loss, moving ahead | in two passes |",
        "|---|--:|--:|--:|--:|",
    ]
    for case in results["cases"]:
        moved, wrong = (
            statistics.mean(run[k] for run in case["ahead"]) for k in ("moved", "wrong")
        )
        losses = [
            f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
            for values in ([run["loss"] for run in case[k]] for k in ("ahead", "two passes"))
        ]
        lines.append(
            f"| {case['rule']}, {case['lr']:g} | {moved:.0f} | {wrong:.0f} | {' | '.join(losses)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also keep the results there")
    options = parser.parse_args(arguments)
    results = measure()
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
