"""Whether a run that is ruined says so: MoMo and TrustedMoMo at a cap of 100 on the hard tasks.

    python -m docs.evidence.silent            # the missing trials; a quarter of an hour

A run is ruined where its training loss is finite and worse at its end, in the mean over the last
tenth of the steps, than over its first ten steps. It is silent where no `MoMoWarning` came. The
results are in docs/evidence/results/silent.csv.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from docs.evidence.further import situations
from docs.evidence.hard_tasks import BASE, BOUNDS, CAP, SITUATIONS
from docs.evidence.methods import BARE, wrapped
from docs.evidence.plan import RESULTS
from momo_wrap import MoMo, MoMoWarning, TrustedMoMo

SILENT = RESULTS / "silent.csv"
RULES = {"TrustedMoMo": TrustedMoMo, "MoMo": MoMo}
SEEDS = {"TrustedMoMo": [3, 4, 5], "MoMo": [3]}
_FIRST = 10


def watch(task: str, rule: str, seed: int) -> dict[str, Any]:
    """Train once, and return the mean training loss at the start and the end, and the warnings."""
    losses: list[float] = []

    def observe(optimizer: Any) -> None:
        losses.append(float(optimizer.last_step.loss))

    bounded = partial(RULES[rule], lower_bound=BOUNDS.get(task, 0.0))
    make = partial(wrapped, base=BARE[BASE], rule=bounded)
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            situations.train(CAP, make, seed, make_situation=SITUATIONS[task], observe=observe)
        except (FloatingPointError, ValueError) as failure:  # densities raise for NaN
            error = str(failure).split("\n")[0]
    told = [str(w.message) for w in caught if issubclass(w.category, MoMoWarning)]
    return {
        "task": task,
        "rule": rule,
        "seed": seed,
        "first": statistics.mean(losses[:_FIRST]),
        "last": statistics.mean(losses[-max(1, len(losses) // 10) :]),
        "steps": len(losses),
        "error": error,
        "told": " ".join(text.split(":")[0] for text in told),
    }


def is_ruined(row: Any) -> bool:
    """Return whether a finite loss is worse at the end than at the start."""
    return not row["error"] and row["last"] > row["first"]


def run(path: Path = SILENT) -> None:
    """Run the missing trials, and save each row at once."""
    torch.set_num_threads(1)
    rows = pd.read_csv(path, keep_default_na=False).to_dict("records") if path.exists() else []
    known = {(row["task"], row["rule"], row["seed"]) for row in rows}
    for rule, seeds in SEEDS.items():
        for task in SITUATIONS:
            for seed in seeds:
                if (task, rule, seed) not in known:
                    rows.append(watch(task, rule, seed))
                    pd.DataFrame(rows).to_csv(path, index=False)


def summary(path: Path = SILENT) -> str:
    """Return the counts of each rule, and the runs that are ruined in silence."""
    frame = pd.read_csv(path, keep_default_na=False)
    lines = []
    for rule, its in frame.groupby("rule", sort=False):
        ruined = its[its.apply(is_ruined, axis=1)]
        silent = ruined[ruined["told"] == ""]
        lines.append(
            f"{rule}: {len(its)} runs, {(its['error'] != '').sum()} not finite, {len(ruined)} "
            f"ruined, {len(silent)} of them silent"
        )
        lines += [
            f"  {row['task']}, seed {row['seed']}: {row['first']:.4g} -> {row['last']:.4g}"
            for _, row in silent.iterrows()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="only show what is there")
    if not parser.parse_args().show:
        run()
    print(summary())


if __name__ == "__main__":
    main()
