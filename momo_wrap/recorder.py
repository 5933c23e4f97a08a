"""What every step amounted to, kept on the device and brought to the host in batches."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from momo_wrap.engine.scalars import as_scalar
from momo_wrap.record import StepRecord
from momo_wrap.wrapper import MoMoWrapper

if TYPE_CHECKING:
    from typing_extensions import Self

_FIELDS = tuple(field.name for field in dataclasses.fields(StepRecord))


class ScalarWriter(Protocol):
    """What TensorBoard's `SummaryWriter` and its like have in common."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> object:
        """Log one number."""


class Recorder:
    """Records every step of a `MoMoWrapper` without waiting for the device at every step.

    The values of a step are copied on the device that they are on. One transfer brings those of
    `every` steps to the host, where they go to a CSV file, to TensorBoard, or to memory. There is
    one row per step: `step`, counted from 0, the fields of `StepRecord`, and for each parameter
    group the cap `lr` and the `effective_lr` that the step amounted to; with several groups
    `lr/pg1` and so on, or with the group's `"name"` in place of `pg1`, and likewise `theta/pg1`
    where the rule chose a fraction for each. A step that was skipped as not finite has no row. The
    last rows are written by `close`, or by leaving the `with` block.

    Args:
        optimizer: The wrapper, or what a trainer made of it.
        every: The number of steps between two transfers.
        path: The CSV file, which is overwritten; None: rows are kept in memory for `curve`. Both
            are kept as attributes.
        tensorboard: A directory for TensorBoard, or a writer that there is already, which is left
            open; None: nothing is written there.

    Raises:
        TypeError: There is no `MoMoWrapper`.
        ValueError: `every` is not positive.
        ImportError: `tensorboard` names a directory, and TensorBoard is not installed.

    Example:
        >>> with Recorder(optimizer, every=100, path="steps.csv") as recorder:
        ...     for inputs, targets in batches:
        ...         ...
        ...         optimizer.step(loss=loss)
        ...         recorder.record()
    """

    def __init__(
        self,
        optimizer: object,
        every: int = 100,
        path: str | PathLike[str] | None = None,
        *,
        tensorboard: str | PathLike[str] | ScalarWriter | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}.")
        self.every = every
        self.path = None if path is None else Path(path)
        self._optimizer = wrapper_of(optimizer)
        self._columns: list[str] = []
        self._form: tuple[int, list[str]] = (0, [])
        self._waiting: list[tuple[int, Tensor, list[float | None]]] = []
        self._rows: list[list[float]] = []  # where there is no file
        self._calls = 0
        self._skipped = self._optimizer.skipped_steps
        self._closed = False
        self._owns_writer = isinstance(tensorboard, (str, PathLike))
        self._writer: Any = _summary(tensorboard) if self._owns_writer else tensorboard
        if self.path is not None:
            self.path.write_text("")  # a path that can't be written is found before the training

    def record(self) -> None:
        """Record the step that was just taken. Call it after each `optimizer.step`.

        Raises:
            ValueError: The recorder is closed, or the number of parameter groups has changed, or
                whether the rule chooses a fraction for each.
        """
        if self._closed:
            raise ValueError("record was called after close. Make a new Recorder.")
        step, self._calls = self._calls, self._calls + 1
        skipped, self._skipped = self._skipped, self._optimizer.skipped_steps
        last = self._optimizer.last_step
        if last is None or self._skipped > skipped:
            return
        effective_lrs = self._optimizer.effective_lrs()
        caps = [group["lr"] for group in self._optimizer.param_groups[: len(effective_lrs)]]
        self._check_columns(last, len(effective_lrs))
        fields = [value for name in _FIELDS for value in getattr(last, name).reshape(-1).unbind()]
        values = [*fields, *effective_lrs, *caps]
        on_host = [None if isinstance(value, Tensor) else float(value) for value in values]
        tensors = [as_scalar(value, last.theta) for value in values if isinstance(value, Tensor)]
        # Stacked they are copies: a CUDA graph or a scheduler may write into the same tensors.
        self._waiting.append((step, torch.stack(tensors), on_host))
        if len(self._waiting) >= self.every:
            self.flush()

    def flush(self) -> None:
        """Bring what was recorded to the host, and write it."""
        if not self._waiting:
            return
        steps, on_device, on_host = zip(*self._waiting, strict=True)
        self._waiting = []
        values = iter(torch.cat(on_device).tolist())  # the only transfer
        rows = [
            [step, *(next(values) if number is None else number for number in numbers)]
            for step, numbers in zip(steps, on_host, strict=True)
        ]
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([self._columns, *rows] if file.tell() == 0 else rows)
        elif self._writer is None:
            self._rows += rows
        if self._writer is not None:
            for row in rows:
                for name, value in zip(self._columns[1:], row[1:], strict=True):
                    self._writer.add_scalar(f"momo/{name}", value, int(row[0]))

    def curve(self) -> dict[str, list[float]]:
        """Return what was recorded so far, after a flush.

        Returns:
            The columns by name, read back from the file if there is one. Empty where nothing was
            recorded, and where the values went to TensorBoard alone.
        """
        self.flush()
        rows = self._rows
        if self.path is not None:
            with self.path.open(newline="") as file:
                rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
        return {name: [row[i] for row in rows] for i, name in enumerate(self._columns)}

    def close(self) -> None:
        """Flush, and accept no further steps. A second call does nothing."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._owns_writer:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_columns(self, last: StepRecord, groups: int) -> None:
        per_group = [name for name in _FIELDS if getattr(last, name).dim()]
        if not self._columns:
            suffixes = group_suffixes(self._optimizer.param_groups[:groups])
            repeated = {*per_group, "effective_lr", "lr"}
            for name in ("step", *_FIELDS, "effective_lr", "lr"):
                self._columns += [name + s for s in (suffixes if name in repeated else [""])]
            self._form = groups, per_group
        before, per_group_before = self._form
        if groups != before:
            raise ValueError(
                f"The recorder began with {before} parameter group(s), and the optimizer now has "
                f"{groups}, for which there are no columns. Close it, and make a new Recorder with "
                "another path after add_param_group."
            )
        if per_group != per_group_before:
            raise ValueError(
                f"The recorder began with a rule whose values per group were {per_group_before}, "
                f"and with the present one they are {per_group}, for which there are no columns. "
                "Close it, and make a new Recorder with another path after setting optimizer.rule."
            )


def _summary(directory: object) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "Recorder(tensorboard=...) got a directory, and TensorBoard is not installed: "
            "pip install tensorboard, or leave the argument out and give a path."
        ) from error
    return SummaryWriter(str(directory))


def wrapper_of(optimizer: object) -> MoMoWrapper:
    """Return the `MoMoWrapper` inside the optimizer that a trainer hands out.

    Args:
        optimizer: The wrapper itself, or what a trainer made of it, which keeps it as `optimizer`
            or, in fastai, as `opt`.

    Returns:
        The wrapper.

    Raises:
        TypeError: There is none.

    Example:
        >>> model, optimizer = accelerator.prepare(model, MoMoWrapper(base))
        >>> wrapper_of(optimizer).last_step.theta
    """
    inner = optimizer
    while not isinstance(inner, MoMoWrapper):
        within = getattr(inner, "optimizer", None) or getattr(inner, "opt", None)
        if within is None:
            raise TypeError(_no_wrapper(optimizer, inner))
        inner = within
    return inner


def _no_wrapper(given: object, inner: object) -> str:
    """Return what to write where there is no wrapper in what was given, only another optimizer."""
    expected = "Expected a MoMoWrapper, or what a trainer made of one, got"
    if inner is None:
        return (
            f"{expected} None. A trainer that makes its optimizer by itself has made none before "
            "it trains: first call its function for that, such as trainer.create_optimizer() of "
            "transformers, or learner.create_opt() of fastai."
        )
    around = "" if inner is given else f" in {type(given).__name__}"
    return (
        f"{expected} {type(inner).__name__}{around}. Give the trainer MoMoWrapper(optimizer), or, "
        "where it takes a class, one of momo_wrap.optim, such as TrustedAdamW."
    )


def group_suffixes(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tells groups apart in logged names, `/pg1` or `/` and the group's `"name"`."""
    if len(groups) == 1:
        return [""]
    return [f"/{group.get('name', f'pg{number}')}" for number, group in enumerate(groups, start=1)]
