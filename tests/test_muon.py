"""Muon and AdamW from a model in one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from momo_wrap import MoMo, MoMoWrapper, Recorder, TrustedMoMo, muon_and_adamw
from momo_wrap.joint import JointOptimizer
from tests.releases import TORCH, Muon, needs_torch

pytestmark = needs_torch(2, 9, "torch.optim.Muon")


class Language(nn.Module):
    """A model with all kinds of parameters."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.convolution(x.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(x + self.down(self.up(self.norm(x)).relu()))
        return logits


def names(model: nn.Module, optimizer: MoMoWrapper) -> dict[str, list[str]]:
    """The parameters of each group."""
    found = {id(param): name for name, param in model.named_parameters()}
    return {g["name"]: [found[id(p)] for p in g["params"]] for g in optimizer.param_groups}


HIDDEN = ["up.weight", "down.weight"]
VECTORS = ["convolution.bias", "norm.weight", "norm.bias", "up.bias", "down.bias"]


@pytest.mark.parametrize("tied", [False, True])
def test_who_gets_what(tied: bool) -> None:
    optimizer = muon_and_adamw(model := Language(tied=tied), lr=0.02, weight_decay=0.3)
    ends = ["embedding.weight", "convolution.weight"] + ["head.weight"] * (not tied)
    assert names(model, optimizer) == {"hidden": HIDDEN, "ends": ends, "vectors": VECTORS}
    assert isinstance(optimizer.base, JointOptimizer)
    assert [type(member) for member in optimizer.base.optimizers] == [Muon, AdamW]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == dict.fromkeys(groups, 0.02)
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"hidden": 0.3, "ends": 0.3, "vectors": 0.0}
    assert groups["hidden"]["adjust_lr_fn"] == "match_rms_adamw"


def test_the_last_layer_can_be_named() -> None:
    model = Language()
    cases: list[tuple[list[nn.Module | Tensor], list[str]]] = [
        ([model.up], ["down.weight", "head.weight"]),
        ([model.up.weight, model.head], ["down.weight"]),
        ([], [*HIDDEN, "head.weight"]),
    ]
    for adamw_for, hidden in cases:
        found = names(model, muon_and_adamw(model, adamw_for=adamw_for))
        assert found["hidden"] == hidden
        assert "embedding.weight" in found["ends"]


def test_frozen_parameters_are_left_out() -> None:
    model = Language()
    model.up.weight.requires_grad_(False)
    model.norm.requires_grad_(False)
    found = names(model, muon_and_adamw(model))
    assert found["hidden"] == ["down.weight"]
    assert "norm.weight" not in found["vectors"]


def test_settings_reach_those_that_they_are_for() -> None:
    optimizer = muon_and_adamw(
        Language(),
        rule=TrustedMoMo(0.5),
        muon={"momentum": 0.9, "lr": 0.5},
        adamw={"betas": (0.8, 0.9)},
        max_grad_norm=1.0,
    )
    assert isinstance(optimizer.rule, TrustedMoMo)
    assert optimizer.max_grad_norm == 1.0
    hidden, ends, vectors = optimizer.param_groups
    assert (hidden["momentum"], hidden["lr"]) == (0.9, 0.5)
    assert ends["betas"] == vectors["betas"] == (0.8, 0.9)
    assert ends["lr"] == 1e-2


def losses(model: Language, optimizer: MoMoWrapper, steps: int = 40) -> list[float]:
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        tokens = torch.randint(0, 11, (8, 6), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).transpose(1, 2), (3 * tokens + 1) % 11)
        loss.backward()
        optimizer.step(loss=loss)
        found.append(loss.item())
    return found


def test_it_is_the_wrapper_of_both() -> None:
    one, other = Language(), Language()
    groups = muon_and_adamw(Language(), lr=0.1).param_groups
    hidden = [other.up.weight, other.down.weight]
    rest = [p for p in other.parameters() if all(p is not matrix for matrix in hidden)]
    by_hand = MoMoWrapper(
        [
            Muon(hidden, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            AdamW(
                [
                    {"params": [p for p in rest if p.dim() > 1], "weight_decay": 0.1},
                    {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0},
                ],
                lr=0.1,
            ),
        ],
        MoMo(),
    )
    assert len(groups) == len(by_hand.param_groups)
    assert losses(one, muon_and_adamw(one, lr=0.1)) == losses(other, by_hand)


@pytest.mark.parametrize(("lr", "rule"), [(0.01, None), (1.0, None), (100.0, TrustedMoMo())])
def test_it_trains(lr: float, rule: Any) -> None:
    optimizer = muon_and_adamw(model := Language(), lr, rule)
    with Recorder(optimizer, every=20) as recorder:
        found = losses(model, optimizer, 150)
        recorder.record()
        assert "effective_lr/hidden" in recorder.curve()
    assert found[-1] < 0.5 * found[0]


def test_a_model_without_hidden_matrices_raises() -> None:
    for model in (nn.Linear(3, 2), nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))):
        with pytest.raises(ValueError, match=r"no matrix of a hidden layer.*MoMoWrapper\(AdamW"):
            muon_and_adamw(model)
    assert len(muon_and_adamw(nn.Linear(3, 2, bias=False), adamw_for=[]).param_groups) == 1


@pytest.mark.skipif(TORCH < (2, 9), reason="there is none to take away")
def test_a_torch_without_muon_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ImportError, match=r"from torch 2\.9 on, got torch"):
        muon_and_adamw(Language())
