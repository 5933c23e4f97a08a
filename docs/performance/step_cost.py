"""What a wrapped step costs: time and temporary memory beside the bare base and momo-opt.

Every optimizer owns a copy of the same parameters and takes its steps in turn with the others of
its family, so that all of them meet the same noise; the figure is the median over the rounds.
Temporary memory is the peak of what torch's allocator handed out during a step, measured in a step
of its own; so are, on CUDA, the kernels launched and the times that the host waited for the device.
The limit is the time that the device takes, at the bandwidth at which it copies, to move what an
ideal implementation would read and write. A few CPU cores may beat it: they move more bytes when
they read several tensors at once than when they copy one.

    python -m docs.performance.step_cost                        # 95 M parameters, 145 tensors
    python -m docs.performance.step_cost --case small bf16 --rounds 5
    python -m docs.performance.step_cost --case all --scale --json result.json
    python -m docs.performance.step_cost --scale                # growth with the size alone
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from docs.performance.cases import CASES, SCALES, Case, Shapes
from docs.performance.contenders import COMPILED, CONTENDERS, FAMILIES, READING, Contender, in_scale
from docs.performance.costs import Cost, Growth, costs_of
from docs.performance.measuring import Measurement, batch_size, copy_bandwidth, free_bytes, measure
from docs.performance.report import (
    CaseResult,
    Results,
    ScaleResult,
    environment,
    heading,
    noise,
    scale_table,
    table,
)

# What the library promises.
MOST_OVER_MOMO_OPT = 0.25
MOST_TEMPORARY_MIB = 64.0


@dataclass(frozen=True)
class Benchmark:
    """The measurements that one command line asks for."""

    contenders: list[Contender]
    device: torch.device
    rounds: int
    seed: int

    def case(self, case: Case) -> CaseResult:
        """Measure all contenders in a case."""
        bandwidth = copy_bandwidth(self.device)
        return CaseResult(
            environment=environment(self.device, self.rounds, self.seed),
            elements=case.elements,
            tensors=len(case.shapes),
            dtype=str(case.dtype).removeprefix("torch."),
            bandwidth=bandwidth,
            costs=costs_of(self._measured(case, self.contenders), case, bandwidth),
        )

    def scale(self, scales: Mapping[str, Mapping[int, Shapes]]) -> ScaleResult:
        """Measure how the time of a step grows."""
        growths = {what: self._growths(points) for what, points in scales.items()}
        return ScaleResult(environment(self.device, self.rounds, self.seed), growths)

    def _growths(self, points: Mapping[int, Shapes]) -> list[Growth]:
        contenders = [contender for contender in self.contenders if in_scale(contender)]
        times: dict[str, dict[int, float]] = {contender.name: {} for contender in contenders}
        for size, shapes in points.items():
            for measured in self._measured(Case(shapes), contenders):
                median = statistics.median(measured.seconds)
                times[measured.contender.name][size] = 1e3 * median
        return [Growth.of(name, by_size) for name, by_size in times.items()]

    def _measured(self, case: Case, contenders: Sequence[Contender]) -> list[Measurement]:
        """The families run one after the other, so that not all copies are in memory at once."""
        measured: list[Measurement] = []
        for family in FAMILIES:
            members = [contender for contender in contenders if contender.family is family]
            if members:
                measured += measure(members, case, self.device, self.rounds, self.seed)
        return measured


def obstacle(case: Case, device: torch.device) -> str | None:
    """Say why a case can't be run on a device; None: it can."""
    if case.needs_cuda and device.type != "cuda":
        return "is only for a CUDA device"
    if batch_size(case, list(CONTENDERS.values()), free_bytes(device)) == 0:
        return f"does not fit in the {free_bytes(device) / 2**30:.0f} GiB of the {device.type}"
    return None


def check(costs: Sequence[Cost]) -> None:
    """Assert what the library promises: a quarter of momo-opt's time, and little memory."""
    by_name = {cost.optimizer: cost for cost in costs}
    compiled = by_name.get(f"AdamW(fused) {COMPILED}")
    assert compiled is not None, "include the compiled AdamW, of which the time is promised"
    ratio = compiled.over_momo_opt
    assert ratio is not None, "include MomoAdam to compare with"
    assert ratio <= MOST_OVER_MOMO_OPT, f"a step takes {ratio:.3f} of momo-opt's time"
    for name, cost in by_name.items():
        contender = CONTENDERS[name]
        if contender.form is None or contender.wrapping not in (READING, COMPILED):
            continue
        bare = by_name.get(contender.family.bare(contender.form))
        mib = cost.temporary_mib - (0.0 if bare is None else bare.temporary_mib)
        assert mib <= MOST_TEMPORARY_MIB, f"{name} takes {mib:.0f} MiB more than its base"


def report(
    benchmark: Benchmark, cases: Sequence[str], *, scale: bool, path: Path | None, promises: bool
) -> None:
    """Measure and print, and keep each result as soon as it is there."""
    for name in cases:
        result = benchmark.case(CASES[name])
        print(f"{heading(name, result)}\n\n{table(result.costs)}\n", flush=True)
        if warning := noise(result.costs):
            print(f"{warning}\n", flush=True)
        if path:
            kept = Results.load(path)
            replace(kept, cases={**kept.cases, name: result}).save(path)
        if promises:
            check(result.costs)
    if scale:
        growth = benchmark.scale(SCALES)
        for what, growths in growth.growths.items():
            print(f"{scale_table(what, growths)}\n", flush=True)
        if path:
            replace(Results.load(path), scale=growth).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--case",
        nargs="+",
        choices=[*CASES, "all"],
        help="one or several, or all that the device can hold; without --scale: transformer",
    )
    parser.add_argument("--scale", action="store_true", help="measure how the cost grows")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="some of them")
    parser.add_argument("--check", action="store_true", help="assert what the library promises")
    parser.add_argument("--json", type=Path, help="also keep the results there, beside older ones")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    cases = options.case or ([] if options.scale else ["transformer"])
    obstacles = {name: obstacle(case, device) for name, case in CASES.items()}
    if "all" in cases:
        cases = [name for name in CASES if obstacles[name] is None]
    for name in cases:
        if obstacles[name] is not None:
            parser.error(f"the case {name!r} {obstacles[name]}")
    contenders = [CONTENDERS[name] for name in options.only or CONTENDERS]
    benchmark = Benchmark(contenders, device, options.rounds, options.seed)
    report(benchmark, cases, scale=options.scale, path=options.json, promises=options.check)


if __name__ == "__main__":
    main()
