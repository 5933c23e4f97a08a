"""What happens at a learning rate of 100: the steps of SGD-M with MoMo and with TrustedMoMo.

    python examples/evidence/collapse.py             # trains, half a minute, and draws
    python examples/evidence/collapse.py --draw      # draws what is recorded

For three tasks, the loss, the norm of the averaged gradient, the step size, and the loss that the
model predicts for the next step are drawn over the first steps. The tuned learning rate is that of
docs/results/evidence.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from methods import sgd_m, wrapped
from problems import train
from tasks import TASKS

from momo_wrap import MoMo, Recorder, StepRule, TrustedMoMo

DOCS = Path(__file__).parents[2] / "docs"
STEPS = DOCS / "results" / "evidence" / "collapse.csv"
FIGURE = DOCS / "results" / "evidence" / "collapse.png"
LR = 100.0
SEED = 1
# With the learning rates at which bare SGD-M trains best, of those that were tried.
SHOWN = {"digits, conv net": 1.0, "text, transformer": 1.0, "digits, diffusion": 4.64}
RULES: dict[str, type[StepRule]] = {"MoMo": MoMo, "TrustedMoMo": TrustedMoMo}
COLOURS = {"MoMo": "#D55E00", "TrustedMoMo": "#0072B2"}


class Quantity(NamedTuple):
    """What is drawn in a row of panels."""

    label: str
    column: str
    is_log: bool


QUANTITIES = [
    Quantity("training loss", "loss", False),
    Quantity("loss that the model\nexpects after the step", "expected", False),
    Quantity("norm of the\naveraged gradient", "norm", True),
    Quantity("step size", "effective_lr", True),
]


def record(task: str, rule: str) -> pd.DataFrame:
    """Train, and return what each step amounted to."""
    recorders: list[Recorder] = []

    def observe(optimizer: object) -> None:
        if not recorders:
            recorders.append(Recorder(optimizer))
        recorders[0].record()

    make = partial(wrapped, base=sgd_m, rule=RULES[rule])
    train(LR, make, SEED, make_problem=TASKS[task], observe=observe)
    steps = pd.DataFrame(recorders[0].curve())
    return steps.assign(task=task, rule=rule)


def draw(steps: pd.DataFrame) -> Figure:
    """Return the figure: a column for each task, a row for each quantity."""
    # SGD's direction is the averaged gradient itself: N = α ‖d‖².
    norm = np.sqrt(steps["predicted_decrease"] / steps["lr"])
    expected = steps["model_value"] - steps["theta"] * steps["predicted_decrease"]
    steps = steps.assign(norm=norm, expected=expected)
    figure = Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(SHOWN), sharex="col", squeeze=False)
    for column, (task, tuned) in enumerate(SHOWN.items()):
        of_task = steps[steps["task"] == task]
        for row, quantity in enumerate(QUANTITIES):
            panel: Axes = panels[row, column]
            draw_panel(panel, of_task, quantity)
            if quantity.column == "effective_lr":
                panel.axhline(LR, color="black", linestyle=":", label=f"the cap, {LR:g}")
                panel.axhline(tuned, color="grey", linestyle="--", label="bare SGD-M, tuned")
            if column == 0:
                panel.set_ylabel(quantity.label)
        panels[0, column].set_title(task)
        panels[-1, column].set_xlabel("step")
    handles, labels = panels[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def draw_panel(panel: Axes, steps: pd.DataFrame, quantity: Quantity) -> None:
    """Draw one quantity of one task."""
    for rule, colour in COLOURS.items():
        values = steps[steps["rule"] == rule]
        panel.plot(values["step"], values[quantity.column], color=colour, lw=1.4, label=rule)
    if quantity.is_log:
        panel.set_yscale("log")
    else:
        # A loss that has exploded must not hide the rest.
        start = steps["loss"].iloc[0]
        panel.set_ylim(-0.15 * start, 2.5 * start)
    panel.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw what is recorded")
    torch.set_num_threads(1)
    if not parser.parse_args().draw:
        recorded = [record(task, rule) for task in SHOWN for rule in RULES]
        STEPS.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(recorded).to_csv(STEPS, index=False, float_format="%.6g")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    draw(pd.read_csv(STEPS)).savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
