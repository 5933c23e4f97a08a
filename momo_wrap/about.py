"""What a bug report needs: versions, devices, and whether passes can be compiled."""

from __future__ import annotations

import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

import momo_wrap
from momo_wrap.wrapper import MoMoWrapper

# Packages that momo_wrap works with; none of them is a dependency.
_OPTIONAL = (
    *("numpy", "triton", "filelock", "matplotlib", "optuna", "pandas", "psutil", "tqdm"),
    *("accelerate", "datasets", "fastai", "hydra-core", "jsonargparse", "lightning", "peft"),
    *("pytorch-ignite", "pytorch-lightning", "sentence-transformers", "skorch"),
    *("stable-baselines3", "timm", "transformers"),
    *("lion-pytorch", "momo-opt", "prodigy-plus-schedule-free", "prodigyopt"),
    *("pytorch-optimizer", "schedulefree"),
)


def info() -> None:
    """Print what to paste into a bug report; `python -m momo_wrap` does so too.

    These are the versions of momo_wrap, torch, Python and the optional packages that are installed,
    the platform, the devices, the number of threads, and whether passes can be compiled on each
    device, or why not. This is found out by compiling one, which takes some seconds.
    """
    for name, value in _facts().items():
        print(f"{name + ':':<11} {value}")
    for device in _devices():
        print(f"{'compiled:':<11} {device}: {_compiled(device)}")


def _facts() -> dict[str, str]:
    """Return what can be told without trying."""
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    threads = f"{torch.get_num_threads()} in operations, {torch.get_num_interop_threads()} between"
    packages = {name: _version(name) for name in _OPTIONAL}
    found = [f"{name} {number}" for name, number in packages.items() if number]
    return {
        "momo_wrap": momo_wrap.__version__,
        "torch": str(torch.__version__),
        "Python": python,
        "platform": platform.platform(),
        "packages": ", ".join(found) or "none",
        "devices": ", ".join(f"{device} ({name})" for device, name in _devices().items()),
        "threads": threads,
    }


def _version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    """Return the name of a device of each type that tensors can be on."""
    found = {"cpu": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        count, runtime = torch.cuda.device_count(), torch.version.hip or torch.version.cuda
        found["cuda"] = f"{count} x {torch.cuda.get_device_name()}, {runtime}"
    if torch.xpu.is_available():
        found["xpu"] = f"{torch.xpu.device_count()} x {torch.xpu.get_device_name()}"
    if torch.backends.mps.is_available():
        found["mps"] = platform.machine()
    return found


def _compiled(device: str) -> str:
    """Return whether a pass can be compiled on a device, tried on two steps, or why not."""
    try:
        from momo_wrap.fast import kernels
    except ImportError:
        return "no: the folder momo_wrap/fast is missing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own; a failure is told below
        try:
            return _tried(device, kernels)
        except Exception as error:  # any error belongs in the report
            return f"no: a step raises {type(error).__name__}: {_on_one_line(str(error))}"


def _tried(device: str, kernels: ModuleType) -> str:
    param = torch.nn.Parameter(torch.zeros(8, device=device))
    param.grad = torch.ones_like(param)
    if device not in kernels.failures and not kernels.can_compile([param]):
        return "no: torch.compile is disabled, as by TORCH_COMPILE_DISABLE=1, or a mode is active"
    before = kernels.count()
    optimizer = MoMoWrapper(torch.optim.AdamW([param]), compiled=True)
    optimizer.step(loss=1.0)  # the first makes the state, without a kernel
    optimizer.step(loss=1.0)
    if device in kernels.failures:
        return f"no: {_on_one_line(kernels.failures[device])}"
    if kernels.count() == before:
        return "no: something else watches or replaces the steps of torch.optim.AdamW"
    return "yes"


def _on_one_line(text: str) -> str:
    return " ".join(text.split())[:300]
