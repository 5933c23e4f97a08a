"""The parts of a task, and the training loop that all tasks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from momo_wrap.sweep import OptimizerFactory

Batch = tuple[Tensor, ...]
Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Problem:
    """A model to train, what to train it on, and how to judge it.

    Attributes:
        model: The model, freshly initialised.
        batches: The training batches, one for each step.
        steps: Their number.
        loss: Maps the model and a batch to the 0-dim loss.
        evaluate: Maps the trained model to what is held against it: `"loss"` on data that was held
            out, and `"score"` where the task has one.
    """

    model: nn.Module
    batches: Iterator[Batch]
    steps: int
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], Mapping[str, Tensor | float]]


def constant(_step: int, _steps: int) -> float:
    """Return the factor of the learning rate at a step, counted from 0: always 1."""
    return 1.0


def warmup_and_linear_decay(step: int, steps: int) -> float:
    """Return a factor that rises to 1 over the first tenth of the steps and then falls to 0."""
    warmup = max(steps // 10, 1)
    return min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1), 1.0)


def train(
    lr: float,
    make_optimizer: OptimizerFactory,
    seed: int,
    *,
    make_problem: Callable[[], Problem],
    schedule: Schedule = constant,
    observe: Callable[[Any], object] | None = None,
    evaluations: int = 0,
) -> dict[str, Any]:
    """Train once.

    Args:
        lr: The learning rate.
        make_optimizer: Makes the optimizer from parameters and a learning rate.
        seed: Seeds initial parameters and the order of batches.
        make_problem: Makes the problem, from torch's seeded generator.
        schedule: Maps the step, from 0, and the number of steps to a factor of the learning rate.
        observe: Is called with the optimizer after each step.
        evaluations: How often the model is judged during training: after the k-th such part of the
            steps, rounded up.

    Returns:
        What `Problem.evaluate` returns at the end. With `evaluations` also `"steps"`, their number,
        and `"evaluations"`, a text: what counts at each, the score if there is one, or the loss.

    Raises:
        FloatingPointError: A training loss is not finite.
    """
    torch.manual_seed(seed)
    problem = make_problem()
    optimizer = make_optimizer(problem.model.parameters(), lr)
    scheduler = LambdaLR(optimizer, lambda step: schedule(step, problem.steps))
    judged: list[str] = []
    judged_after = moments(problem.steps, evaluations)
    _set_mode(problem, optimizer, "train")
    for step, batch in enumerate(problem.batches, start=1):
        loss = problem.loss(problem.model, batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the training loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]  # bare and wrapped alike
        scheduler.step()
        if observe is not None:
            observe(optimizer)
        if step in judged_after:
            found = judge(problem, optimizer)
            judged.append(f"{float(found.get('score', found['loss'])):.5g}")
            _set_mode(problem, optimizer, "train")
    at_the_end = judge(problem, optimizer)
    if evaluations:
        at_the_end |= {"steps": problem.steps, "evaluations": " ".join(judged)}
    return at_the_end


def moments(steps: int, evaluations: int) -> list[int]:
    """Return the steps, counted from 1, after which a model is judged: evenly spaced, rounded up.

    Args:
        steps: The number of steps.
        evaluations: How often; the last is after the last step.
    """
    return [-(-k * steps // evaluations) for k in range(1, evaluations + 1)]


def judge(problem: Problem, optimizer: Any) -> dict[str, Any]:
    """Return the value of a model at its parameters for evaluation."""
    _set_mode(problem, optimizer, "eval")
    with torch.no_grad():
        return dict(problem.evaluate(problem.model))


def epochs(data: Batch, batch_size: int, steps: int) -> Iterator[Batch]:
    """Yield batches of data that is reshuffled in each epoch; the last partial batch is dropped.

    Args:
        data: Tensors of equal length.
        batch_size: The number of examples in a batch.
        steps: How many batches are yielded.
    """
    order: list[Tensor] = []
    for _ in range(steps):
        if not order:
            order = [*torch.randperm(len(data[0])).split(batch_size)]
            order = [chosen for chosen in order if len(chosen) == batch_size]
        chosen = order.pop()
        yield tuple(tensor[chosen] for tensor in data)


def _set_mode(problem: Problem, optimizer: Any, mode: str) -> None:
    """Tell the model, and schedule-free optimizers, which evaluate at other parameters."""
    getattr(problem.model, mode)()
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()
