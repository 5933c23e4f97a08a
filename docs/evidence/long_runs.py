"""Long runs: 10,000 steps on data that never repeats, three schedules, batches of 4 to 256.

    python -m docs.evidence.long_runs      # the missing trials; half an hour on two cores

trains bare Adam at five learning rates, and Adam with TrustedMoMo at a cap of 100, on three tasks
of which the best possible loss is known, so that what is left above it is measured. The results are
in docs/evidence/results/long_runs.csv, with the step sizes on the way; the table in
docs/evidence.md is written by report.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.methods import METHODS
from docs.evidence.plan import RESULTS, run_from_command_line
from docs.evidence.problems import (
    Batch,
    Problem,
    Schedule,
    constant,
    train,
    warmup_and_linear_decay,
)
from docs.evidence.sections import table
from momo_wrap import MoMoWrapper, sweep
from momo_wrap.sweep import OptimizerFactory

LONG_RUNS = RESULTS / "long_runs.csv"
STEPS = 10_000
BASE, WRAPPED, CAP = "Adam", "Adam + TrustedMoMo", 100.0
LEARNING_RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SEEDS = [0, 1]
USUAL = 32  # the number of examples in a batch
BATCHES = [4, 256]
# After which steps the step size is kept.
MOMENTS = [100, 300, 1000, 3000, 10_000]
RESTARTS = 3


def restarts(step: int, steps: int) -> float:
    """Return the factor of the learning rate with warm restarts, a cosine to 0 each time."""
    cycle = steps / RESTARTS
    return (1.0 + math.cos(math.pi * (step % cycle) / cycle)) / 2.0


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "decay": warmup_and_linear_decay,
    "warm restarts": restarts,
}


def teacher(batch: int) -> Problem:
    """A network learns the output of a smaller one from noisy values."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(16, 8, generator=generator) / 4.0
    second = torch.randn(8, 1, generator=generator)

    def truth(x: Tensor) -> Tensor:
        return torch.tanh(2.0 * x @ first) @ second

    def batches() -> Iterator[Batch]:
        for _ in range(STEPS):
            x = torch.randn(batch, 16)
            yield x, truth(x) + 0.5 * torch.randn(batch, 1)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])

    test = torch.randn(4096, 16, generator=generator)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    return Problem(model, batches(), STEPS, loss, lambda m: {"loss": loss(m, (test, truth(test)))})


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def excess(logits: Tensor, log_posterior: Tensor) -> Tensor:
    """Return the mean cross-entropy beyond the best possible one, which is a divergence."""
    own = functional.log_softmax(logits, dim=1)
    return functional.kl_div(own, log_posterior, reduction="batchmean", log_target=True)


def clusters(batch: int) -> Problem:
    """Ten normal distributions that overlap."""
    generator = torch.Generator().manual_seed(1)
    centres = 0.6 * torch.randn(10, 20, generator=generator)

    def draw(count: int, generator: torch.Generator | None = None) -> Batch:
        labels = torch.randint(10, (count,), generator=generator)
        return centres[labels] + torch.randn(count, 20, generator=generator), labels

    def batches() -> Iterator[Batch]:
        for _ in range(STEPS):
            yield draw(batch)

    test, _ = draw(4096, generator)
    posterior = functional.log_softmax(-torch.cdist(test, centres).square() / 2.0, dim=1)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    return Problem(
        model, batches(), STEPS, cross_entropy, lambda m: {"loss": excess(m(test), posterior)}
    )


def chain(batch: int) -> Problem:
    """The next of 12 symbols; the last two determine its probabilities."""
    generator = torch.Generator().manual_seed(2)
    odds = functional.log_softmax(1.5 * torch.randn(144, 12, generator=generator), dim=1)

    def batches() -> Iterator[Batch]:
        for _ in range(STEPS):
            last = torch.randint(144, (batch,))
            yield last, torch.multinomial(odds[last].exp(), 1).squeeze(1)

    everything = torch.arange(144)
    pairs = torch.stack([everything // 12, 12 + everything % 12], dim=1)
    model = nn.Sequential(_Pairs(pairs), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 12))
    return Problem(
        model, batches(), STEPS, cross_entropy, lambda m: {"loss": excess(m(everything), odds)}
    )


class _Pairs(nn.Module):
    """Embeds both symbols of a pair."""

    pairs: Tensor

    def __init__(self, pairs: Tensor) -> None:
        super().__init__()
        self.register_buffer("pairs", pairs)
        self.symbols = nn.Embedding(24, 16)

    def forward(self, last: Tensor) -> Tensor:
        found: Tensor = self.symbols(self.pairs[last])
        return found.flatten(1)


TASKS: dict[str, Callable[[int], Problem]] = {
    "teacher": teacher,
    "clusters": clusters,
    "chain": chain,
}


def settings() -> dict[str, tuple[Callable[[], Problem], Schedule]]:
    """Return the runs by name: all schedules, and other batches at a constant rate."""
    cases = [(name, USUAL) for name in SCHEDULES] + [("constant", batch) for batch in BATCHES]
    return {
        f"{task}, {name}, batches of {batch}": (partial(make, batch), SCHEDULES[name])
        for task, make in TASKS.items()
        for name, batch in cases
    }


def train_and_watch(
    lr: float,
    make_optimizer: OptimizerFactory,
    seed: int,
    *,
    make_problem: Callable[[], Problem],
    schedule: Schedule,
) -> dict[str, Any]:
    """Train once; return what `problems.train` does, and the step sizes at `MOMENTS`."""
    steps, sizes = 0, []

    def observe(optimizer: Any) -> None:
        nonlocal steps
        steps += 1
        if steps in MOMENTS and isinstance(optimizer, MoMoWrapper):
            sizes.append(f"{float(optimizer.effective_lrs()[0]):.3g}")

    found = train(
        lr, make_optimizer, seed, make_problem=make_problem, schedule=schedule, observe=observe
    )
    return {**found, "step_sizes": " ".join(sizes)}


def run(processes: int | None = None) -> None:
    """Run the missing trials in so many processes; None: one per core."""
    tasks = {
        name: partial(train_and_watch, make_problem=make, schedule=schedule)
        for name, (make, schedule) in settings().items()
    }
    for method, lrs in ((BASE, LEARNING_RATES), (WRAPPED, [CAP])):
        make = {method: METHODS[method]}
        sweep.run(tasks, make, lrs, SEEDS, LONG_RUNS, processes=processes)


def section(path: Path = LONG_RUNS) -> str:
    """Return the excess over the best possible loss of each run, and the step sizes.

    Args:
        path: The results.
    """
    results = sweep.load(path) if path.exists() else None
    needed = len(settings()) * len(SEEDS) * (len(LEARNING_RATES) + 1)
    if results is None or len(results) != needed:
        return "There are no complete results yet."
    of_bare = results["optimizer"] == BASE
    bare = results[of_bare].pivot_table("loss", "task", "lr", aggfunc=_geometric_mean)
    own = results[~of_bare].groupby("task")["loss"].agg(_geometric_mean)
    ratios = bare.div(bare.min(axis=1), axis=0)
    calibrated = float(ratios.agg(_geometric_mean).idxmin())
    first = results[~of_bare & (results["seed"] == SEEDS[0])].set_index("task")
    rows = [
        [
            task,
            f"{bare.loc[task].min():.2g} at {bare.loc[task].idxmin():g}",
            f"x {ratios.loc[task, calibrated]:.2f}",
            f"x {own[task] / bare.loc[task].min():.2f}",
            " ".join(first.loc[task, "step_sizes"].split()[::2]),
        ]
        for task in settings()
    ]
    after = ", ".join(f"{moment:,}" for moment in MOMENTS[::2])
    head = ["run", f"bare {BASE} at its best", f"at {calibrated:g}", WRAPPED, f"θα after {after}"]
    told = {
        f"bare {BASE} at {calibrated:g}, the best one for all together": ratios[calibrated],
        f"{WRAPPED} at a cap of {CAP:g}": own / bare.min(axis=1),
    }
    lines = [
        f"- {name}: {_geometric_mean(of):.2f} times that of tuned bare {BASE} in the geometric "
        f"mean, from {of.min():.2f} ({of.idxmin()}) to {of.max():.2f} ({of.idxmax()})"
        for name, of in told.items()
    ]
    return "\n".join([*lines, "", table(head, rows, texts=1)])


def _geometric_mean(values: Any) -> float:
    """Return e to the mean of logarithms; infinite where a run failed."""
    finite = values.fillna(math.inf)
    return float(np.exp(np.log(finite).mean()))


if __name__ == "__main__":
    run_from_command_line(run, __doc__)
