"""The tasks and methods that docs/evidence compares."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import MoMoWrapper

for needed in ("sklearn", "prodigyplus"):
    pytest.importorskip(needed, reason="the examples and test extras are not installed")

DESIGN = ["digits, perceptron", "digits, conv net", "text, transformer", "digits, diffusion"]
DESIGN += ["matrix completion"]
HELD_OUT = ["digits, ResNet", "digits, ViT", "transduction, seq2seq", "clicks, DLRM"]
HELD_OUT += ["tumours, logistic"]


@pytest.fixture
def evidence() -> Any:
    """The modules, by name."""
    names = ["problems", "tasks", "methods", "recommender", "sequences", "torchvision_images"]
    return SimpleNamespace(**{name: import_module(f"docs.evidence.{name}") for name in names})


def test_tasks_are_chosen_or_judged_on(evidence: Any) -> None:
    assert list(evidence.tasks.DESIGN) == DESIGN
    assert list(evidence.tasks.HELD_OUT) == HELD_OUT


@pytest.mark.parametrize("name", DESIGN + HELD_OUT)
def test_task_can_be_learned(name: str, evidence: Any) -> None:
    """Every parameter has a gradient, a few steps of Adam lower the loss, and it is judged."""
    torch.manual_seed(0)
    problem = evidence.tasks.TASKS[name]()
    batch = next(problem.batches)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = problem.loss(problem.model, batch)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and bool(p.grad.any()) for p in problem.model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert len(list(problem.batches)) == problem.steps - 1
    problem.model.eval()
    with torch.no_grad():
        judged = {key: float(value) for key, value in problem.evaluate(problem.model).items()}
    assert judged.keys() == ({"loss", "score"} if "score" in judged else {"loss"})
    assert ("score" in judged) >= (name in evidence.tasks.SCORED)
    assert all(math.isfinite(value) for value in judged.values())


@pytest.mark.parametrize("seed", range(10))
def test_initial_factors_tell_nothing_of_the_matrix(seed: int, evidence: Any) -> None:
    torch.manual_seed(seed)
    problem = evidence.tasks.TASKS["matrix completion"]()
    with torch.no_grad():
        assert float(problem.evaluate(problem.model)["score"]) < 0.0


def test_same_seed_is_the_same_run(evidence: Any) -> None:
    make = evidence.tasks.TASKS["tumours, logistic"]
    runs = [
        evidence.problems.train(0.1, evidence.methods.sgd_m, seed, make_problem=make)
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_run_that_explodes_is_no_result(evidence: Any) -> None:
    make = evidence.tasks.TASKS["matrix completion"]
    with pytest.raises(FloatingPointError, match="training loss"):
        evidence.problems.train(1e6, evidence.methods.sgd_m, 0, make_problem=make)


def test_warmup_and_decay(evidence: Any) -> None:
    factors = [evidence.problems.warmup_and_linear_decay(k, 100) for k in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == 0.5
    assert factors[100] == 0.0


def test_no_prediction_is_better_than_the_best_loss(evidence: Any) -> None:
    """The bound of the clicks: the true probabilities reach it, wrong ones don't."""
    log = evidence.recommender.click_log()[evidence.recommender.CLICKS :]
    loss = nn.functional.binary_cross_entropy
    best = evidence.recommender.best_loss()
    assert loss(log.probabilities, log.probabilities).item() == pytest.approx(best)
    wrong = (log.probabilities * 0.9 + 0.05).clamp(0, 1)
    assert loss(wrong, log.probabilities).item() > best + 1e-3
    # and the clicks are drawn from these probabilities
    assert loss(log.probabilities, log.clicks).item() == pytest.approx(best, abs=0.02)


def test_transduction_is_backwards_and_shifted(evidence: Any) -> None:
    sources, so_far, targets = evidence.sequences.transduced(4)
    assert torch.equal((sources.flip(1) + 3) % 10, targets)
    assert torch.equal(so_far[:, 1:], targets[:, :-1])


def test_bare_optimizers_step_together(evidence: Any) -> None:
    """As one by one; the values that a scheduler writes into the groups reach them."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    both = evidence.methods.muon(list(model.parameters()), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(3)).sum().backward()
    both.param_groups[1]["lr"] = 0.0
    both.step(lambda: 1.0)
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [True, False]


def test_all_methods_are_there(evidence: Any) -> None:
    methods = evidence.methods.METHODS
    bases = ["SGD-M", "Adam", "AdamW", "Lion", "Adagrad", "Muon"]
    for base in bases:
        wrapped = methods[f"{base} + MoMo"]([nn.Parameter(torch.ones(2, 2))], 0.1)
        assert isinstance(wrapped, MoMoWrapper)
        assert repr(wrapped.rule).startswith("MoMo(")
        trusted = methods[f"{base} + TrustedMoMo"]([nn.Parameter(torch.ones(2, 2))], 0.1)
        assert repr(trusted.rule).startswith("TrustedMoMo(")
    assert {"Prodigy", "D-Adaptation", "Mechanic", "schedule-free AdamW"} <= set(methods)


class Stored:
    """A dataset as torchvision has them."""

    shape: tuple[int, ...] = (20, 28, 28)

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        assert not download
        if not (root / type(self).__name__).exists():
            raise RuntimeError("Dataset not found.")
        pixels = torch.randint(256, self.shape, dtype=torch.uint8)
        self.data: Any = pixels.numpy() if len(self.shape) == 4 else pixels
        self.targets: list[int] | Tensor = [0] * 10 + [1] * 10


class MNIST(Stored):
    pass


class CIFAR10(Stored):
    shape = (20, 32, 32, 3)


def test_torchvision_tasks_are_those_whose_data_is_there(
    evidence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    found = evidence.torchvision_images.found
    assert found(tmp_path) == {}
    datasets = ModuleType("torchvision.datasets")
    datasets.MNIST, datasets.CIFAR10 = MNIST, CIFAR10  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert found(tmp_path) == {}
    for name in ("MNIST", "CIFAR10"):
        (tmp_path / name).mkdir()
    tasks = found(tmp_path)
    assert list(tasks) == ["MNIST, conv net", "CIFAR-10, ResNet"]
    for make in tasks.values():
        problem = make()
        judged = problem.evaluate(problem.model.eval())
        assert 0 <= float(judged["score"]) <= 1
