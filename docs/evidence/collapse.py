"""What happens at a learning rate of 100: the steps of SGD-M with MoMo and with TrustedMoMo.

    python -m docs.evidence.collapse             # trains, a minute, and draws
    python -m docs.evidence.collapse --draw      # draws the recorded runs

For each task, the loss, the loss that the model expects after the step, the norm of the averaged
gradient and the step size are drawn over the steps; three tasks that show what may go wrong are in
one figure, all others in a second one. The tuned learning rate is that of bare SGD-M in
docs/evidence/results/summary.csv.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.evidence.methods import sgd_m, wrapped
from docs.evidence.plan import RESULTS
from docs.evidence.problems import train
from docs.evidence.tasks import TASKS
from momo_wrap import MoMo, Recorder, StepRule, TrustedMoMo

STEPS = RESULTS / "collapse.csv"
LR = 100.0
SEED = 1
SHOWN = ["digits, conv net", "text, transformer", "digits, diffusion"]
FIGURES = {
    "collapse.png": SHOWN,
    "collapse_others.png": [task for task in TASKS if task not in SHOWN],
}
RULES: dict[str, type[StepRule]] = {"MoMo": MoMo, "TrustedMoMo": TrustedMoMo}
COLORS = {"MoMo": "#D55E00", "TrustedMoMo": "#0072B2"}


class Quantity(NamedTuple):
    """The contents of a row of panels."""

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


def tuned() -> dict[str, float]:
    """Return the learning rate at which bare SGD-M trains best, by task."""
    summary = pd.read_csv(RESULTS / "summary.csv")
    rows = summary[(summary["schedule"] == "constant") & (summary["method"] == "SGD-M")]
    return dict(zip(rows["task"], rows["best_lr"], strict=True))


def draw(steps: pd.DataFrame, tasks: list[str], best_lrs: dict[str, float]) -> Figure:
    """Return a figure: a column for each task, a row for each quantity."""
    # SGD's direction is the averaged gradient itself: N = α ‖d‖².
    norm = np.sqrt(steps["predicted_decrease"] / steps["lr"])
    expected = steps["value_after_decay"] - steps["theta"] * steps["predicted_decrease"]
    steps = steps.assign(norm=norm, expected=expected)
    figure = Figure(figsize=(2 + 3 * len(tasks), 10), layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(tasks), sharex="col", squeeze=False)
    for column, task in enumerate(tasks):
        of_task = steps[steps["task"] == task]
        for row, quantity in enumerate(QUANTITIES):
            panel: Axes = panels[row, column]
            draw_panel(panel, of_task, quantity)
            if quantity.column == "effective_lr":
                panel.axhline(LR, color="black", linestyle=":", label=f"the cap, {LR:g}")
                best = best_lrs[task]
                panel.axhline(best, color="grey", linestyle="--", label="bare SGD-M, tuned")
            if column == 0:
                panel.set_ylabel(quantity.label)
        panels[0, column].set_title(task)
        panels[-1, column].set_xlabel("step")
    handles, labels = panels[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def draw_panel(panel: Axes, steps: pd.DataFrame, quantity: Quantity) -> None:
    """Draw one quantity of one task."""
    for rule, color in COLORS.items():
        values = steps[steps["rule"] == rule]
        panel.plot(values["step"], values[quantity.column], color=color, lw=1.4, label=rule)
    if quantity.is_log:
        panel.set_yscale("log")
    else:
        # A loss that has exploded must not hide the rest.
        start = steps["loss"].iloc[0]
        panel.set_ylim(-0.15 * start, 2.5 * start)
    panel.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw the recorded runs")
    torch.set_num_threads(1)
    if not parser.parse_args().draw:
        recorded = [record(task, rule) for task in TASKS for rule in RULES]
        pd.concat(recorded).to_csv(STEPS, index=False, float_format="%.5g")
    steps, best_lrs = pd.read_csv(STEPS), tuned()
    for name, tasks in FIGURES.items():
        draw(steps, tasks, best_lrs).savefig(RESULTS / name, dpi=90)


if __name__ == "__main__":
    main()
