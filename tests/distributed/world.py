"""Starting several processes that talk to each other over loopback, and ending them in any case."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeAlias, TypeVar

import pytest
import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 240.0  # seconds for a world, in any case
COLLECTIVE_TIMEOUT = timedelta(seconds=120)
GRACE = 5.0  # seconds for the other ranks once one has failed


class LeftOut(NamedTuple):
    """Why a rank has skipped the test."""

    reason: str


# Its return value, pickled; its error; or neither.
Answer: TypeAlias = bytes | str | LeftOut

# The server imports what takes long once, and is forked for each rank.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "torch._dynamo",  # which fully_shard imports at the first step
        "torch.distributed.checkpoint.state_dict_loader",
        "torch.distributed.checkpoint.state_dict_saver",
        "torch.distributed.tensor.parallel",
        "tests.distributed.parallel",
    ]
)


def run_world(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
    """Call a function of a module in several processes with a gloo group of all of them.

    Args:
        size: The number of processes.
        function: The function.
        args: Its arguments, which can be pickled.
        kwargs: The same.

    Returns:
        What it returned on each rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends = [_context.Pipe(duplex=False) for _ in range(size)]
        call = pickle.dumps((function, args, kwargs))
        processes = [
            _context.Process(target=_run_rank, args=(rank, size, folder, call, ends[rank][1]))
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            for _, sender in ends:
                sender.close()
            answers = _collect([receiver for receiver, _ in ends])
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
    for answer in answers:
        if isinstance(answer, LeftOut):
            pytest.skip(answer.reason)
    failures = [
        f"rank {rank} of {size}: {answer}"
        for rank, answer in enumerate(answers)
        if isinstance(answer, str)
    ]
    if failures:
        raise AssertionError("\n".join(failures))
    return [pickle.loads(answer) for answer in answers if isinstance(answer, bytes)]


def _collect(receivers: list[Connection]) -> list[Answer]:
    """Return the answer of each rank, or what went wrong there."""
    answers: list[Answer] = ["was still running when time was up"] * len(receivers)
    ranks = {receiver: rank for rank, receiver in enumerate(receivers)}
    deadline = time.monotonic() + TIMEOUT
    while ranks:
        ready = wait(list(ranks), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for receiver in receivers:
            if receiver not in ready:
                continue
            rank = ranks.pop(receiver)
            try:
                answers[rank] = receiver.recv()
            except EOFError:
                answers[rank] = "died without an answer"
            if isinstance(answers[rank], str):
                deadline = min(deadline, time.monotonic() + GRACE)
    return answers


def _run_rank(rank: int, size: int, folder: str, call: bytes, sender: Connection) -> None:
    """Be one of the processes."""
    warnings.simplefilter("error")
    # torch's own: it walks over the attributes of old classes when it looks for custom formatters
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
    # torch's own too: of tensor parallel training in 2.4, and of checkpoints in 2.8
    warnings.filterwarnings("ignore", "DTensor random operators may not have complete support")
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        function, args, kwargs = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        answer = pickle.dumps(function(*args, **kwargs))
        dist.barrier()
        dist.destroy_process_group()
    except pytest.skip.Exception as skipped:
        sender.send(LeftOut(str(skipped)))
    except BaseException:
        sender.send(traceback.format_exc())
    else:
        sender.send(answer)
    sender.close()
