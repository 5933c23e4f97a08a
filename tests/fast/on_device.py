"""Corrections as on an accelerator: engines on the CPU that leave them to a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from momo_wrap.engine.passes import Move
from momo_wrap.fast import correction
from momo_wrap.fast.updates import Update

Correct = Callable[[Update, Sequence[Move], dict[object, Any]], None]


@contextmanager
def on_device(correct: Correct | None = None) -> Iterator[list[int]]:
    """Let a kernel correct moves ahead; yield the number of blocks of each launch.

    Args:
        correct: In place of the kernel; None: the kernel.
    """
    launched: list[int] = []
    chosen = correction.correct if correct is None else correct

    def spy(update: Update, moves: Sequence[Move], kept: dict[object, Any]) -> None:
        launched.append(len(moves))
        chosen(update, moves, kept)

    with (
        mock.patch.object(correction, "_DEVICES", frozenset({"cpu"})),
        mock.patch.object(correction, "_has_triton", return_value=True),
        mock.patch.object(correction, "correct", spy),
    ):
        yield launched


def reference(update: Update, moves: Sequence[Move], kept: dict[object, Any]) -> None:
    """Do what the kernel does, with operations of torch, of which the host reads the condition."""
    assert len(kept) > 0  # a plan's cache
    for block, keep, pull in moves:
        ahead = block.ahead
        assert ahead is not None
        is_right = ahead.pull == pull and (1.0 if ahead.keep is None else ahead.keep) == keep
        if ahead.limit is not None:
            assert block.largest is not None
            is_right = is_right and bool(block.largest * ahead.pull <= ahead.limit)
        scales: Any = [block.scalars[name] for name in update.direction]
        if is_right:
            continue
        x, buffer = block.pieces["param"][0], block.flat("buffer")
        if len(scales) == 1:
            direction = buffer * scales[0]
        else:
            maxima = "max_exp_avg_sq" in block.pieces
            square = block.flat("max_exp_avg_sq" if maxima else "exp_avg_sq")
            direction = buffer / (square.sqrt() * scales[0] + scales[1])
        direction = direction.to(x.dtype)
        x.copy_(ahead.put_back(x.clone(), direction) * keep - direction * pull)
