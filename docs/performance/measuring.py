"""Measures steps of optimizers, on a CPU or a CUDA device: time, memory, launches, bandwidth."""

from __future__ import annotations

import gc
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from docs.performance.cases import Case
from docs.performance.contenders import COMPILED, Contender
from momo_wrap import MoMoWrapper

Step = Callable[[], object]

WARM_UP_STEPS = 3  # the first makes the state, and compiles; the second may compile anew
_MARK = "measured step"
_MARGIN_SECONDS = 1e-3  # the clocks of operators and of calls into CUDA may differ by less
_LAUNCH = re.compile(r"cu(da)?Launch(Cooperative)?Kernel|cu(da)?GraphLaunch")
_SYNCHRONISATION = re.compile(
    r"cu(da)?(Stream|Device|Event|Ctx)Synchronize|cu(da)?Memcpy(?!.*Async)"
)


@dataclass(frozen=True)
class DeviceCalls:
    """What the host asked of a CUDA device during a step."""

    launches: int
    synchronisations: int

    @classmethod
    def among(cls, names: Sequence[str]) -> DeviceCalls:
        """Count them in the names of what was called.

        PyTorch copies to the host asynchronously and then synchronises, so that a copy that it
        waits for counts once.
        """
        return cls(
            sum(_LAUNCH.match(name) is not None for name in names),
            sum(_SYNCHRONISATION.match(name) is not None for name in names),
        )


@dataclass(frozen=True)
class Measurement:
    """What was measured of a contender."""

    contender: Contender
    seconds: list[float]
    temporary_bytes: int
    calls: DeviceCalls | None
    warm_up_seconds: float
    foreseen: float | None


@dataclass
class _Running:
    """A contender with parameters and state of its own."""

    contender: Contender
    optimizer: Optimizer
    loss: Tensor
    steps: int = 0
    foreseen: int = 0

    @classmethod
    def make(cls, contender: Contender, case: Case, gradients: list[Tensor], seed: int) -> _Running:
        device = gradients[0].device
        params = _random_tensors(case, device, seed)
        for param, gradient in zip(params, gradients, strict=True):
            param.requires_grad_()
            param.grad = gradient
        # Made once: on CUDA, to make a tensor from a number waits for the device.
        return cls(contender, contender.make(params), torch.tensor(1.0, device=device))

    def step(self) -> None:
        """Take one step, and count those in which the fraction that is taken was foreseen."""
        if self.contender.is_bare:
            self.optimizer.step()
        else:
            self.optimizer.step(loss=self.loss)  # type: ignore[call-overload]
        if isinstance(self.optimizer, MoMoWrapper):
            self.steps += 1
            self.foreseen += self.optimizer._memory.reach is not None

    @property
    def share_foreseen(self) -> float | None:
        """The share of the steps so far, None where nothing is foreseen."""
        return self.foreseen / self.steps if self.steps else None


def measure(
    contenders: Sequence[Contender], case: Case, device: torch.device, rounds: int, seed: int
) -> list[Measurement]:
    """Measure contenders of one family, in turns as far as they are in memory together."""
    size = batch_size(case, contenders, free_bytes(device))
    if size == 0:
        raise MemoryError(f"{case.elements} elements are too many for this {device.type}")
    batches = [contenders[start : start + size] for start in range(0, len(contenders), size)]
    return [m for batch in batches for m in _measure_batch(batch, case, device, rounds, seed)]


def _measure_batch(
    contenders: Sequence[Contender], case: Case, device: torch.device, rounds: int, seed: int
) -> list[Measurement]:
    if any(contender.wrapping == COMPILED for contender in contenders):
        # What was compiled for other cases counts towards the limit of recompilations.
        torch.compiler.reset()
    gradients = _random_tensors(case, device, seed + 1)  # shared: no contender writes to them
    running = [_Running.make(contender, case, gradients, seed) for contender in contenders]
    warm_up = [sum(seconds(r.step, device) for _ in range(WARM_UP_STEPS)) for r in running]
    temporary = [temporary_bytes(r.step, device) for r in running]
    calls = [device_calls(r.step) if device.type == "cuda" else None for r in running]
    for each in running:
        each.steps = each.foreseen = 0
    times = interleaved_seconds([r.step for r in running], device, rounds, seed)
    foreseen = [r.share_foreseen for r in running]
    del running, gradients
    _release(device)
    return [
        Measurement(*parts)
        for parts in zip(contenders, times, temporary, calls, warm_up, foreseen, strict=True)
    ]


def interleaved_seconds(
    steps: Sequence[Step], device: torch.device, rounds: int, seed: int
) -> list[list[float]]:
    """Time each step once per round, in an order that changes, so that all meet the same noise."""
    order = list(range(len(steps)))
    shuffle = random.Random(seed).shuffle
    times: list[list[float]] = [[] for _ in steps]
    with _no_garbage_collection():
        for _ in range(rounds):
            shuffle(order)
            for index in order:
                times[index].append(seconds(steps[index], device))
    return times


def seconds(step: Step, device: torch.device) -> float:
    """Wall time of a step, until the device is done with it."""
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def temporary_bytes(step: Step, device: torch.device) -> int:
    """The most memory that torch had allocated at once during a step, beyond that before it."""
    if device.type != "cuda":
        return _temporary_bytes_of_host(step)
    _synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    _synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _temporary_bytes_of_host(step: Step) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def device_calls(step: Step) -> DeviceCalls:
    """Count the launches and synchronisations of a step."""
    return DeviceCalls.among(names_of_calls(step))


def names_of_calls(step: Step) -> list[str]:
    """The names of all that the profiler saw the host call during a step."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, record_function(_MARK):
        time.sleep(_MARGIN_SECONDS)
        step()
        time.sleep(_MARGIN_SECONDS)
    events = profiler.profiler.kineto_results.events()
    events = [event for event in events if event.device_type().name == "CPU"]
    # The profiler synchronises too, when it starts and ends; that is outside the mark.
    (mark,) = (event for event in events if event.name() == _MARK)
    start, end = mark.start_ns(), mark.end_ns()
    return [event.name() for event in events if start < event.start_ns() < end]


def copy_bandwidth(device: torch.device, repeats: int = 11) -> float:
    """Bytes per second, read and written, of copying a tensor larger than any cache."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.zeros_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(repeats)]
    return 2 * source.nbytes / statistics.median(times)


def free_bytes(device: torch.device) -> int:
    """The memory that a measurement may fill: what is free on a GPU, what there is on a host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def batch_size(case: Case, contenders: Sequence[Contender], free: int) -> int:
    """How many of the contenders fit in memory together; 0: not even one."""
    kept = 1 + max(contender.family.states for contender in contenders)
    shared = 5  # the gradients, and what the hungriest contender takes in a step or keeps besides
    copies = int(0.9 * free / (case.elements * case.dtype.itemsize))
    return min(max((copies - shared) // kept, 0), len(contenders))


def _random_tensors(case: Case, device: torch.device, seed: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, device=device, dtype=case.dtype)
        for shape in case.shapes
    ]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device) -> None:
    gc.collect()  # optimizers and their hooks refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hold it off: it would walk over the tensors of all contenders during a step of one."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
