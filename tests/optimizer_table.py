"""The tables of optimizers in README and docs, from the registry and the tables of the tests.

`python -m tests.optimizer_table` prints them.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from momo_wrap import ProposingAdapter, ReadingAdapter, adapter_for
from tests import every
from tests.cases import ALGORITHMS
from tests.testing.test_laws import PROPOSED

ROOT = Path(__file__).parents[1]
HEADER = "| optimizer | adapter | memory in a step | tested |\n|---|---|---|---|\n"
TORCH = [name for name in every.LISTED if name.startswith("torch.optim.")]
OTHERS = [
    name for name in every.OTHERS if not every.is_refused(name) and not name.startswith("timm")
]
# Where the settings decide on the adapter or on its memory.
VARIANTS: dict[str, dict[str, Any]] = {
    "torch.optim.RMSprop": {"momentum": 0.9},
    "torch.optim.Muon": {"nesterov": False},
}
OF_PYTORCH_OPTIMIZER = "pytorch_optimizer."


def make(name: str, **settings: Any) -> Optimizer:
    """An optimizer of a matrix."""
    package, _, kind = name.rpartition(".")
    cls = every.LISTED.get(name) or getattr(importlib.import_module(package), kind)
    return cls([torch.ones(64, 64, requires_grad=True)], **settings)


def laws() -> set[type[Optimizer]]:
    """The classes that `check_adapter` is run on."""
    params = [torch.ones(2, 2, requires_grad=True)]
    return {case.kind for case in ALGORITHMS} | {type(made(params)) for made in PROPOSED.values()}


def row(name: str, **settings: Any) -> str:
    """The table's row of an optimizer."""
    optimizer = make(name, **settings)
    shown = "".join(f", `{key}={value}`" for key, value in settings.items())
    title = f"`{name}`{shown}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = adapter_for(optimizer)
    except TypeError as error:
        reason = re.split(r": |, so |\. Use|, and ", str(error))[1]
        return f"| {title} | none: {reason} | | the error |\n"
    if isinstance(adapter, ReadingAdapter):
        memory = "a few MiB"
    else:
        assert isinstance(adapter, ProposingAdapter)
        copies = adapter.memory(optimizer) / (4 * 64 * 64)
        memory = f"{copies:.0f} x the parameters"
    tested = ["laws"] * (type(optimizer) in laws()) + ["50 steps"] * (name in every.TRAINED)
    return f"| {title} | `{type(adapter).__name__}` | {memory} | {', '.join(tested)} |\n"


def table() -> str:
    """All of torch, and the other packages one by one."""
    rows = []
    for name in [*sorted(TORCH), *OTHERS]:
        rows.append(row(name))
        if name in VARIANTS:
            rows.append(row(name, **VARIANTS[name]))
    return HEADER + "".join(rows)


def wrapped_of_pytorch_optimizer() -> str:
    """The names of all that pytorch-optimizer has besides, and that are wrapped in one line."""
    names = [
        name.removeprefix(OF_PYTORCH_OPTIMIZER)
        for name in every.TRAINED
        if name.startswith(OF_PYTORCH_OPTIMIZER) and not every.is_refused(name)
    ]
    return f"{len(names)} of pytorch-optimizer 4.1, by its own names:\n\n" + wrapped(names)


def wrapped(words: Iterable[str]) -> str:
    """A comma-separated list in lines of at most 100 characters."""

    def lines() -> Iterator[str]:
        line = ""
        for word in [f"{word}," for word in words]:
            if len(line) + len(word) + 1 > 100:
                yield line
                line = ""
            line = f"{line} {word}".lstrip()
        yield line.rstrip(",") + "."

    return "\n".join(lines()) + "\n"


def summary() -> str:
    """The table of the README: bases that are read, and bases that propose."""
    read, proposed, copies = [], [], set()
    for name in sorted(TORCH):
        for settings in ({}, VARIANTS.get(name, {})):
            copies |= set(re.findall(r"\| (\d) x the parameters", row(name, **settings)))
        short = name.removeprefix("torch.optim.")
        if "`ProposingAdapter`" in row(name):
            proposed.append(short)
        elif "none:" not in row(name):
            read.append(short)
    return (
        "| `torch.optim` | adapter | memory in a step |\n|---|---|---|\n"
        f"| {', '.join(read)} | reads the optimizer's state | a few MiB |\n"
        f"| {', '.join(proposed)} | takes the optimizer's step and keeps a fraction of it | "
        f"{min(copies)} to {max(copies)} x the parameters |\n"
    )


def main() -> None:
    """Print the tables."""
    print(summary(), table(), wrapped_of_pytorch_optimizer(), sep="\n")


if __name__ == "__main__":
    main()
