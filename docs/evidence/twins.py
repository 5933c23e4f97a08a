"""Training of two copies of a model at once, for the rule that takes one as the bound of the other.

It costs two evaluations and two gradients a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from docs.evidence.problems import Problem
from momo_wrap.sweep import OptimizerFactory


def train_twins(
    lr: float, make_optimizer: OptimizerFactory, seed: int, *, make_problem: Callable[[], Problem]
) -> dict[str, Any]:
    """Train two models, which differ in their initial parameters, on the same batches.

    Args:
        lr: The learning rate.
        make_optimizer: Makes the wrapper from two parameter groups and a learning rate.
        seed: Seeds initial parameters and the order of batches.
        make_problem: Makes the problem, from torch's seeded generator.

    Returns:
        What `Problem.evaluate` returns at the end, for the copy that was better at the last step.

    Raises:
        FloatingPointError: A training loss is not finite.
    """
    torch.manual_seed(seed)
    problem = make_problem()
    copies = [problem.model, make_problem().model]
    optimizer: Any = make_optimizer([{"params": copy.parameters()} for copy in copies], lr)
    for copy in copies:
        copy.train()
    for batch in problem.batches:
        loss, other = (problem.loss(copy, batch) for copy in copies)
        if not math.isfinite(loss.item() + other.item()):
            raise FloatingPointError(f"the training losses are {loss.item()} and {other.item()}")
        optimizer.zero_grad()
        (loss + other).backward()
        optimizer.step(loss=loss - other)
    better = copies[int(optimizer.last_step.theta[0] > 0)].eval()
    with torch.no_grad():
        return dict(problem.evaluate(better))
