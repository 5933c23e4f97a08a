"""A record of every step, kept on the device and copied to the host in batches."""

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
    """The interface of TensorBoard's `SummaryWriter` and similar writers."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> object:
        """Log one number."""


class Recorder:
    """Records every step of a `MoMoWrapper` without a host synchronization per step.

    The values of a step are copied on their device. One transfer brings those of `every` steps to
    the host, where they go to a CSV file, to TensorBoard, or to memory. Each step has one row:
    `step`, counted from 0, the fields of `StepRecord`, and for each parameter group the cap `lr`
    and the `effective_lr`. With several groups, the names are `lr/pg1` and so on, or with the
    group's `"name"` instead of `pg1`; likewise `theta/pg1` if the rule chose a fraction for each. A
    step skipped by `nonfinite="skip"` has no row. `close`, or the end of the `with` block, writes
    the last rows.

    Args:
        optimizer: The wrapper, or a trainer's wrapper around it.
        every: The number of steps between two transfers.
        path: The CSV file, which is overwritten; None: rows are kept in memory for `curve`. `every`
            and `path` are also attributes.
        tensorboard: A directory for TensorBoard, or an existing writer, which is left open; None:
            no TensorBoard logs.

    Raises:
        TypeError: `optimizer` is not and does not contain a `MoMoWrapper`.
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
            raise ValueError(f"every must be at least 1 step, got {every}. Write every=100.")
        self.every = every
        self.path = None if path is None else Path(path)
        self._optimizer = wrapper_of(optimizer)
        self._columns: list[str] = []
        self._form: tuple[int, list[str]] = (0, [])
        self._waiting: list[tuple[int, Tensor, list[float | None]]] = []
        self._rows: list[list[float]] = []  # if there is no file
        self._calls = 0
        self._skipped = self._optimizer.skipped_steps
        self._closed = False
        self._owns_writer = isinstance(tensorboard, (str, PathLike))
        self._writer: Any = _summary(tensorboard) if self._owns_writer else tensorboard
        if self.path is not None:
            self.path.write_text("")  # raises before training if it can't be written

    def record(self) -> None:
        """Record the last step. Call it after each `optimizer.step`.

        Raises:
            ValueError: The recorder is closed, or the number of parameter groups has changed, or
                the rule started or stopped choosing a fraction for each group.
        """
        if self._closed:
            raise ValueError("record was called after close. Create a new Recorder.")
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
        # `stack` copies: a CUDA graph or a scheduler may write into the same tensors.
        self._waiting.append((step, torch.stack(tensors), on_host))
        if len(self._waiting) >= self.every:
            self.flush()

    def flush(self) -> None:
        """Copy the recorded values to the host, and write them."""
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
        """Flush, and return the records so far.

        Returns:
            The columns by name, read from the file if there is one. Empty if nothing was recorded,
            or if the values went only to TensorBoard.
        """
        self.flush()
        rows = self._rows
        if self.path is not None:
            with self.path.open(newline="") as file:
                rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
        return {name: [row[i] for row in rows] for i, name in enumerate(self._columns)}

    def close(self) -> None:
        """Flush, and accept no further steps. A second call is a no-op."""
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
                f"{groups}, which have no columns. Close it, and create a new Recorder with "
                "another path after add_param_group."
            )
        if per_group != per_group_before:
            raise ValueError(
                f"The recorder began with a rule whose values per group were {per_group_before}, "
                f"and with the new rule they are {per_group}, which have no columns. Close it, and "
                "create a new Recorder with another path after setting optimizer.rule."
            )


def _summary(directory: object) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "Recorder(tensorboard=...) got a directory, but TensorBoard is not installed: pip "
            "install tensorboard, or write Recorder(optimizer, path='steps.csv')."
        ) from error
    return SummaryWriter(str(directory))


def wrapper_of(optimizer: object) -> MoMoWrapper:
    """Return the `MoMoWrapper` inside a trainer's optimizer.

    Args:
        optimizer: The wrapper, or a trainer's wrapper around it with the attribute `optimizer` or,
            in fastai, `opt`.

    Returns:
        The wrapper.

    Raises:
        TypeError: There is no `MoMoWrapper` inside.

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
    """Return the error message for an optimizer without a `MoMoWrapper` inside."""
    expected = "Expected a MoMoWrapper, or a trainer's wrapper around one, got"
    if inner is None:
        return (
            f"{expected} None. Some trainers create their optimizer only when they train: first "
            "call trainer.create_optimizer() of transformers, or learner.create_opt() of fastai."
        )
    around = "" if inner is given else f" in {type(given).__name__}"
    return (
        f"{expected} {type(inner).__name__}{around}. Give the trainer MoMoWrapper(optimizer), or, "
        "if it takes a class, one of momo_wrap.optim, such as TrustedAdamW."
    )


def group_suffixes(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the suffixes of groups in logged names, `/pg1` or `/` and the group's `"name"`."""
    if len(groups) == 1:
        return [""]
    return [f"/{group.get('name', f'pg{number}')}" for number, group in enumerate(groups, start=1)]
