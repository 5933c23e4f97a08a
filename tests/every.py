"""Every optimizer of torch and of common packages, and a small run that any of them can make."""

from __future__ import annotations

import importlib.util
import io
import pickle
import random
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter, StepRecord
from momo_wrap.adapters import registry
from tests.problems import last_step

HALF = 25  # steps; a whole run is two halves
STOPPED = 12  # steps; some optimizers do not move in their first ten
RESUMED = 5  # steps, each of which shows all that was kept
FALLS = 0.95  # of the loss at the start, the most that is left by an optimizer that trains

MakeOptimizer = Callable[..., Optimizer]


def listed() -> dict[str, MakeOptimizer]:
    """All classes of torch, and the ones that pytorch_optimizer adds to them."""
    of_torch = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    kinds: dict[str, MakeOptimizer] = {
        f"torch.optim.{kind.__name__}": kind
        for kind in of_torch
        if issubclass(kind, Optimizer) and kind is not Optimizer
    }
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        package = importlib.import_module("pytorch_optimizer")
        for name in package.get_supported_optimizers():
            kind = package.load_optimizer(name)
            if kind not in of_torch:
                kinds[f"pytorch_optimizer.{name}"] = kind
    return kinds


def among(package: str, *names: str) -> list[str]:
    return [f"{package}.{name}" for name in names]


LISTED = listed()
OTHERS = [
    *among("dadaptation", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD"),
    *among("lion_pytorch", "Lion"),
    *among("mechanic_pytorch", "Adam", "SGD"),
    *among("prodigyopt", "Prodigy"),
    *among("schedulefree", "AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"),
    *among("timm.optim", "Adan", "LaProp", "Lion", "MADGRAD", "NAdamW"),
]
# These can't be trained by loss.backward() and step(), and their error says why.
IMPOSSIBLE = {
    "pytorch_optimizer.adalomo": "no attribute 'named_parameters'",  # steps during backward()
    "pytorch_optimizer.alig": "requires closure",
    "pytorch_optimizer.bsam": "requires closure",
    "pytorch_optimizer.demo": "einops|process group",  # for torch.distributed only
    "pytorch_optimizer.distributedmuon": "process group",
    "pytorch_optimizer.lomo": "no attribute 'parameters'",  # steps during backward()
    "torch.optim.LBFGS": "closure",
    "torch.optim.SparseAdam": "does not support dense gradients",
}
TRAINED = [name for name in [*LISTED, *OTHERS] if name not in IMPOSSIBLE]
SCHEDULE_FREE = [name for name in TRAINED if "schedulefree" in name]

# Settings without which a class does not train this problem, or not visibly.
SETTINGS: dict[str, dict[str, Any]] = {
    "dadaptation.DAdaptAdaGrad": {"d0": 1e-3},
    "pytorch_optimizer.adamod": {"lr": 1e-1},
    "pytorch_optimizer.bsam": {"num_data": 64},
    "pytorch_optimizer.dadaptadagrad": {"d0": 1e-3},
    "pytorch_optimizer.grokfastadamw": {"lr": 1e-3},
    "pytorch_optimizer.lars": {"lr": 1.0},
    "pytorch_optimizer.ranger": {"lr": 1e-2},
    "pytorch_optimizer.ranger21": {"num_iterations": 2 * HALF},
    "pytorch_optimizer.sara": {"lr": 1e-2, "threshold": 0.3},
    "pytorch_optimizer.sgdw": {"lr": 1e-3},
    "pytorch_optimizer.shampoo": {"lr": 1e-2},
    "pytorch_optimizer.simplifiedademamix": {"lr": 1e-3},
    "pytorch_optimizer.spectralsphere": {"lr": 1e-2},
    "torch.optim.AdamW": {"weight_decay": 0.0},  # which the wrapper applies in its own form
}
# These take groups that say where to use Muon.
_MUONS = ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon")
OF_MUON = set(among("pytorch_optimizer", *_MUONS))
OF_MODULE = {"pytorch_optimizer.adammini"}  # takes the module
FLOAT32_ONLY = {"pytorch_optimizer.fadam"}  # fails on parameters in float64
# These differentiate the gradients.
SECOND_ORDER = {"pytorch_optimizer.adahessian", "pytorch_optimizer.sophiah"}
# These have objects in their state, for which torch.load(weights_only=True) raises.
_WITH_OBJECTS = ("adashift", "conda", "scalableshampoo", "scion", "scionlight")
PICKLED = set(among("pytorch_optimizer", *_WITH_OBJECTS))
# These can't go on from a state dict when bare: theirs has the parameters themselves as keys.
DO_NOT_RESUME = {"mechanic_pytorch.Adam", "mechanic_pytorch.SGD"}
# Solves for a multiplier in each step, which takes as long as a hundred steps of the others.
LONG = {"pytorch_optimizer.spectralsphere"}
# All others are left to the ProposingAdapter, with a warning.
_READ = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
_LIONS = {"lion_pytorch.Lion", "pytorch_optimizer.lion", "timm.optim.Lion"}
READ = {*among("torch.optim", *_READ), *_LIONS}


def is_refused(name: str) -> bool:
    """Whether the one line gives an error, because shortened steps break an estimate of the base.

    Such a base runs for a while all the same, with the adapter as an explicit argument.
    """
    return name.startswith(("dadaptation.", "mechanic_pytorch.", "pytorch_optimizer.dadapt"))


def kind_of(name: str) -> MakeOptimizer:
    """Find an optimizer class, or skip the test where its package is not installed."""
    if name in LISTED:
        return LISTED[name]
    package, _, kind = name.rpartition(".")
    if package == "timm.optim":
        skip_what_timm_imports()
    module: Any = pytest.importorskip(package)
    if package == "mechanic_pytorch":
        return module.mechanize(getattr(torch.optim, kind))  # type: ignore[no-any-return]
    return getattr(module, kind)  # type: ignore[no-any-return]


def skip_what_timm_imports() -> None:
    """Make timm's optimizers importable without torchvision, which only its models need."""
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    found = importlib.util.find_spec("timm")
    if found is None:
        return
    for name in ("timm", "timm.models", "timm.models._manipulate"):
        stub: Any = types.ModuleType(name)
        stub.__path__ = found.submodule_search_locations if name == "timm" else []
        stub.group_parameters = stub.group_with_matcher = None
        sys.modules[name] = stub


class Run:
    """A regression by two matrices, laid out as in `torch.nn.Linear`, on all data at once.

    Args:
        name: The optimizer, of `LISTED` or `OTHERS`.
        rule: What it is wrapped with; None: it is bare.
        dtype: Of data and parameters.
        settings: Beyond those of `SETTINGS`.
    """

    def __init__(
        self, name: str, rule: MoMo | None, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> None:
        self.name = name
        generator = torch.Generator().manual_seed(0)
        self.inputs, teacher, *weights = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in [(64, 8), (4, 8), (16, 8), (4, 16)]
        )
        self.targets = torch.tanh(self.inputs @ teacher.T)
        self.params: list[Tensor] = [torch.nn.Parameter(0.3 * weight) for weight in weights]
        given: Any = self.params if name not in OF_MODULE else torch.nn.ParameterList(self.params)
        if name in OF_MUON:
            given = [{"params": self.params, "use_muon": True}]
        base = kind_of(name)(given, **{**SETTINGS.get(name, {}), **settings})
        self.optimizer = base if rule is None else wrapped(name, base, rule)
        self.switch("train")  # schedule-free ones raise in step without it
        self.losses: list[float] = []
        self.records: list[StepRecord] = []

    def loss(self) -> Tensor:
        hidden = torch.tanh(self.inputs @ self.params[0].T)
        return (hidden @ self.params[1].T - self.targets).square().sum(1).mean()

    def go_on(self, steps: int = HALF) -> Run:
        """Train, with the same random numbers in each half of each run."""
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        second_order = self.name in SECOND_ORDER
        with torch.enable_grad():  # mechanic leaves gradients disabled where it raises
            for _ in range(steps):
                loss = self.loss()
                grads = torch.autograd.grad(loss, self.params, create_graph=second_order)
                for param, grad in zip(self.params, grads, strict=True):
                    param.grad = grad
                self.losses.append(loss.item())
                if isinstance(self.optimizer, MoMoWrapper):
                    self.optimizer.step(loss=loss)
                    self.records.append(last_step(self.optimizer))
                else:
                    self.optimizer.step()
        return self

    def left(self) -> float:
        """The loss relative to that at the start, where the optimizer wants to be evaluated."""
        self.switch("eval")
        loss = self.loss().item()
        self.switch("train")
        return loss / self.losses[0]

    def switch(self, name: str) -> None:
        """Call train() or eval() of an optimizer that has it."""
        getattr(self.optimizer, name, lambda: None)()

    def resumed(self, rule: MoMo | None) -> Run:
        """Continue with new objects, through a file."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        if self.name in PICKLED:
            file.seek(0)
            with pytest.raises(pickle.UnpicklingError):
                torch.load(file, weights_only=True)
        file.seek(0)
        other = Run(self.name, rule)
        for param, value in zip(other.params, self.params, strict=True):
            param.data.copy_(value)
        other.optimizer.load_state_dict(torch.load(file, weights_only=self.name not in PICKLED))
        return other


def wrapped(name: str, base: Optimizer, rule: MoMo) -> MoMoWrapper:
    """Wrap in one line; if the optimizer is unknown, a warning names the memory."""
    if is_refused(name):
        with pytest.raises(TypeError, match="it estimates its learning rate from steps that"):
            MoMoWrapper(base, rule)
        return MoMoWrapper(base, rule, adapter=ProposingAdapter())
    if name in READ:
        wrapper = MoMoWrapper(base, rule)  # a warning would be an error
        assert not isinstance(wrapper.adapter, ProposingAdapter)
        return wrapper
    if f"{type(base).__module__}.{type(base).__qualname__}" in registry._proposing:
        wrapper = MoMoWrapper(base, rule)
        assert isinstance(wrapper.adapter, ProposingAdapter)
        return wrapper
    with pytest.warns(UserWarning, match=rf"{re.escape(type(base).__qualname__)}: .* MiB"):
        wrapper = MoMoWrapper(base, rule)
    assert isinstance(wrapper.adapter, ProposingAdapter)
    return wrapper
