"""The snippets of docs/trainers.md run, each with the trainer that it is about."""

from __future__ import annotations

import math
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from momo_wrap.integrations import wrapper_of
from tests.every import skip_what_timm_imports
from tests.problems import last_step
from tests.test_docs import ROOT, a_model

PAGE = (ROOT / "docs" / "trainers.md").read_text()
SECTIONS = [section.split("\n", 1) for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)]
FOUND = {
    name: "\n".join(re.findall(r"^```py\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    for name, text in SECTIONS
}
SNIPPETS = {name: snippets for name, snippets in FOUND.items() if snippets}

PACKAGES = {
    "Lightning": "lightning",
    "accelerate": "accelerate",
    "transformers": "transformers",
    "sentence-transformers": "sentence_transformers",
    "peft": "peft",
    "fastai": "fastai",
    "ignite": "ignite",
    "stable-baselines3": "stable_baselines3",
    "skorch": "skorch",
    "timm": "timm",
    "Hydra": "hydra",
}
# What these say to the packages that they use.
LOUD = ("sentence-transformers", "peft", "fastai", "ignite", "stable-baselines3", "skorch")


def test_every_trainer_has_a_snippet() -> None:
    assert list(SNIPPETS) == [*PACKAGES, "Code that can't be changed"]


def test_the_first_table_leads_to_every_trainer() -> None:
    top = PAGE.partition("## ")[0]
    assert top.count("\n") < 40
    links = re.findall(r"^\| \[.*?\]\(#(.*?)\)", top, flags=re.MULTILINE)
    assert links == [re.sub(r"[^\w-]", "", name.lower().replace(" ", "-")) for name in SNIPPETS]


# Lightning's own, see test_lightning.py.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
# The snippet leaves it to Lightning where to log, and how often.
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("trainer", SNIPPETS)
def test_snippet_runs(trainer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    skip_what_timm_imports()
    package = PACKAGES.get(trainer, "torch")
    if package not in sys.modules and find_spec(package) is None:
        pytest.skip(f"{trainer} is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "snippet", **a_model()}
    with warnings.catch_warnings():
        if trainer in LOUD:
            warnings.simplefilter("ignore")
        exec(compile(SNIPPETS[trainer], "trainers.md", "exec"), names)
    optimizer = names["trainer"].optimizers[0] if trainer == "Lightning" else names["optimizer"]
    assert math.isfinite(float(last_step(wrapper_of(optimizer)).loss))
