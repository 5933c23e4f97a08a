"""The picture of the truncated model: one parameter, a real loss, and the steps on it.

    python -m docs.how_it_works.figure

takes gradient steps on a loss of one parameter at a learning rate that is too large, builds the
momentum model from them by equations (1) and (2), and draws where the base's own step ends and
where MoMo's does.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from momo_wrap import MoMoWrapper

PICTURE = Path(__file__).parent / "truncated_model.png"
WARM_LR, LR, MOMENTUM, START, STEPS = 0.4, 4.0, 0.8, 3.0, 4


def loss_at(x: torch.Tensor) -> torch.Tensor:
    """A loss with its least value 0.1 at 0, steeper on one side."""
    return 0.1 + torch.log(torch.cosh(x)) + 0.15 * x


def states() -> tuple[float, float, float, float, float]:
    """Return x, the model's value and slope there, and where the base's and MoMo's steps end."""
    x = torch.tensor(START, requires_grad=True)
    optimizer = MoMoWrapper(torch.optim.SGD([x], WARM_LR, MOMENTUM, dampening=MOMENTUM))
    before = START
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR if step == STEPS - 1 else WARM_LR
        before = x.item()
        optimizer.zero_grad()
        loss = loss_at(x)
        loss.backward()
        optimizer.step(loss=loss)
    last = optimizer.last_step
    assert last is not None
    move = (x.item() - before) / last.theta.item()  # the base's own
    slope = -last.predicted_decrease.item() / move
    return before, last.value_after_decay.item(), slope, before + move, x.item()


def draw() -> Figure:
    """Return the picture."""
    x, value, slope, base_end, end = states()
    line = np.linspace(base_end - 0.4, START + 0.3, 400)
    model = value + slope * (line - x)
    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=(8.0, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.0, color="0.6", linewidth=1)
        axes.text(line[0], -0.35, "f* = 0, the lower bound", color="0.35")
        axes.plot(line, loss_at(torch.tensor(line)).numpy(), color="black", label="the loss")
        axes.plot(line, model, "--", color="tab:blue", label="its model: averaged past gradients")
        truncated = np.maximum(model, 0.0)
        axes.plot(
            line, truncated, color="tab:blue", linewidth=3, label="the model, truncated at f*"
        )
        proximal = truncated + (line - x) ** 2 * -slope / (2 * (base_end - x))
        axes.plot(line, proximal, ":", color="tab:green", linewidth=2, label="what MoMo minimizes")
        points = (
            (x, value, "o", "black", "the parameter now"),
            (base_end, value + slope * (base_end - x), "X", "tab:red", "the base's own step"),
            (end, 0.0, "*", "tab:green", "MoMo's step: as far as f*"),
        )
        for at, height, marker, color, text in points:
            axes.plot(at, height, marker, color=color, markersize=11)
            axes.annotate(text, (at, height), (10, -14), textcoords="offset points", color=color)
        axes.set(
            xlabel="parameter", ylabel="loss", ylim=(value + slope * (base_end - x) - 0.5, 4.2)
        )
        axes.legend(loc="upper center", framealpha=1.0)
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=110)
