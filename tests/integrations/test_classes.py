"""Classes of optimizers in what makes optimizers from a class or its name."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, TrustedMoMo
from momo_wrap.optim import MoMoAdamW, TrustedAdam, TrustedAdamW, TrustedSGD
from tests.every import skip_what_timm_imports
from tests.problems import flat
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
MADE = MoMoWrapper.of(torch.optim.NAdam, TrustedMoMo(), lr=100.0)
kinds = pytest.mark.parametrize("kind", [TrustedAdamW, MADE], ids=lambda kind: kind.__name__)


def of_page(key: str) -> list[dict[str, Any]]:
    """The configurations of the page that have a key."""
    yaml: Any = pytest.importorskip("yaml", reason="PyYAML reads the configurations")
    found = [config for config in map(yaml.safe_load, BLOCKS) if key in config["optimizer"]]
    assert found
    return found


class Net(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)  # type: ignore[no-any-return]


def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    return inputs, inputs.sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore")  # what Lightning and jsonargparse say to each other
def test_lightning_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    pytest.importorskip("jsonargparse", reason="Lightning's CLI needs it")
    pl: Any = pytest.importorskip("lightning.pytorch")
    cli: Any = importlib.import_module("lightning.pytorch.cli")

    class Regression(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = (self.net(batch[0]) - batch[1]).square().mean()
            return loss

        def train_dataloader(self) -> Any:
            dataset = torch.utils.data.TensorDataset(*data())
            return torch.utils.data.DataLoader(dataset, batch_size=4)

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = dict.fromkeys(off, False) | {"max_epochs": 1, "accelerator": "cpu"}
    optimizers = []
    for config in of_page("class_path"):
        trainer["default_root_dir"] = str(tmp_path)
        made = cli.LightningCLI(
            Regression,
            run=False,
            seed_everything_default=False,
            save_config_callback=None,
            args={"trainer": trainer, **config},
        )
        made.trainer.fit(made.model)
        optimizers.append(made.trainer.optimizers[0])
    trusted, star = optimizers
    assert type(trusted) is TrustedAdamW
    assert trusted.defaults["lr"] == 100.0
    assert trusted.defaults["weight_decay"] == 0.1
    assert trusted.nonfinite == "skip"
    assert type(star) is MoMoAdamW
    assert vars(star.rule) == vars(MoMoStar(0.1))
    assert all(optimizer.last_step.theta > 0 for optimizer in optimizers)


def test_hydra() -> None:
    utils: Any = pytest.importorskip("hydra.utils")
    (config,) = of_page("_target_")
    optimizer = utils.instantiate(config["optimizer"], params=Net().parameters())
    assert type(optimizer) is MoMoAdamW
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.99)
    assert vars(optimizer.rule) == vars(MoMoStar(0.1))
    base = {"_target_": "hydra.utils.get_class", "path": "torch.optim.NAdam"}
    rule = {"_target_": "momo_wrap.TrustedMoMo"}
    of = {"_target_": "momo_wrap.MoMoWrapper.of", "base": base, "rule": rule, "lr": 100.0}
    assert utils.instantiate(of) is MADE


@kinds
def test_transformers(kind: Any, tmp_path: Path) -> None:
    """The class replaces the argument `optimizers=`, with Trainer's two groups."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="transformers trains with accelerate")
    from transformers import TrainingArguments

    from momo_wrap.integrations.transformers import MoMoTrainer
    from tests.integrations.language import BATCH_SIZE, language_model, sequences

    def trained(by_class: bool) -> Tensor:
        model = language_model()
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=5,
            max_grad_norm=0.0,
            weight_decay=0.1,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        made: dict[str, Any] = {"optimizer_cls_and_kwargs": (kind, {"lower_bound": 0.5})}
        if not by_class:
            names = MoMoTrainer(model, arguments).get_decay_parameter_names(model)
            decayed = [p for name, p in model.named_parameters() if name in names]
            others = [p for name, p in model.named_parameters() if name not in names]
            groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others}]
            base = kind(groups, weight_decay=0.0).base
            made = {"optimizers": (MoMoWrapper(base, TrustedMoMo(0.5)), None)}
        trainer = MoMoTrainer(model, arguments, train_dataset=sequences(), **made)
        trainer.train()
        return flat(list(model.parameters()))

    assert torch.equal(trained(by_class=True), trained(by_class=False))


@kinds
def test_skorch(kind: Any) -> None:
    skorch: Any = pytest.importorskip("skorch")
    search: Any = pytest.importorskip("sklearn.model_selection")
    inputs, targets = (tensor.numpy() for tensor in data())
    net = skorch.NeuralNetRegressor(
        Net, optimizer=kind, lr=100.0, max_epochs=3, train_split=None, verbose=0
    )
    net.set_params(optimizer__lower_bound=-0.1, optimizer__nonfinite="skip")
    net.fit(inputs, targets)
    assert type(net.optimizer_) is kind
    assert (net.optimizer_.rule.lower_bound, net.optimizer_.nonfinite) == (-0.1, "skip")
    again = pickle.loads(pickle.dumps(net))
    assert type(again.optimizer_) is kind
    for one in (net, again):
        one.partial_fit(inputs, targets)
    assert again.history[-1, "train_loss"] == net.history[-1, "train_loss"]
    grid = {"optimizer__lr": [1e-9, 100.0], "optimizer__lower_bound": [0.0, 100.0]}
    found = search.GridSearchCV(net, grid, cv=2, error_score="raise").fit(inputs, targets)
    assert found.best_params_ == {"optimizer__lr": 100.0, "optimizer__lower_bound": 0.0}


@pytest.mark.parametrize("kind", [TrustedAdam, MADE], ids=lambda kind: kind.__name__)
def test_stable_baselines3(kind: Any, tmp_path: Path) -> None:
    sb3: Any = pytest.importorskip("stable_baselines3")
    settings = {"optimizer_class": kind, "optimizer_kwargs": {"lower_bound": -1.0}}
    model = sb3.PPO("MlpPolicy", "CartPole-v1", learning_rate=100.0, policy_kwargs=settings)
    model.save(tmp_path / "model")
    again = sb3.PPO.load(tmp_path / "model")
    assert again.policy_kwargs["optimizer_class"] is kind
    for policy in (model.policy, again.policy):
        assert type(policy.optimizer) is kind
        assert policy.optimizer.rule.lower_bound == -1.0
        assert policy.optimizer.param_groups[0]["lr"] == 100.0


def test_timm() -> None:
    skip_what_timm_imports()
    factory: Any = pytest.importorskip("timm.optim._optim_factory")
    registry = factory.OptimizerRegistry()
    registry.register(factory.OptimInfo("trustedadamw", TrustedAdamW, has_betas=True))
    registry.register(factory.OptimInfo("trustedsgd", TrustedSGD, has_eps=False, has_momentum=True))
    adamw = registry.create_optimizer(Net(), "trustedadamw", weight_decay=0.1, lower_bound=0.5)
    assert type(adamw) is TrustedAdamW
    assert adamw.rule.lower_bound == 0.5
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.1}
    assert {group["lr"] for group in adamw.param_groups} == {100.0}
    sgd = registry.create_optimizer(Net(), "trustedsgd", lr=1.0, eps=1e-8, momentum=0.8)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (1.0, 0.8)


def test_paths_and_arguments_as_text() -> None:
    """As sd-scripts reads them from the command line."""
    path, texts = "momo_wrap.optim.TrustedAdamW", ["nonfinite='skip'", "betas=0.9, 0.99"]
    module, _, name = path.rpartition(".")
    pairs = (text.split("=") for text in texts)
    settings = {key: ast.literal_eval(value) for key, value in pairs}
    optimizer = getattr(importlib.import_module(module), name)(
        Net().parameters(), lr=100.0, **settings
    )
    assert optimizer.nonfinite == "skip"
    assert optimizer.defaults["betas"] == (0.9, 0.99)


def test_cloudpickle() -> None:
    cloudpickle: Any = pytest.importorskip("cloudpickle")
    for kind in (TrustedAdamW, MADE):
        assert cloudpickle.loads(cloudpickle.dumps(kind)) is kind


def test_rules_name_the_types_that_configurations_give() -> None:
    for rule in (MoMo, MoMoStar, TrustedMoMo):
        types = {p.annotation for p in inspect.signature(rule).parameters.values()}
        assert types == {float}
