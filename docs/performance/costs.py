"""From measurements to figures: medians, ratios, the distance from the limit, slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from docs.performance.cases import Case
from docs.performance.contenders import Contender
from docs.performance.measuring import Measurement


@dataclass(frozen=True)
class Cost:
    """The cost of a step.

    Attributes:
        optimizer: The name of the contender.
        milliseconds: The median wall time.
        quartiles: The quartiles of the wall time in milliseconds.
        over_fused: The median over that of the bare fused base in the same run.
        over_foreach: The same for the bare foreach base.
        over_momo_opt: The same for momo-opt's optimizer.
        limit_milliseconds: The time in which memory moves what an ideal implementation would have
            to read and write.
        over_limit: The median over that.
        temporary_mib: The peak of the memory that the step allocated.
        launches: The number of kernels launched; None on a CPU.
        synchronisations: How often the host waited for the device; None on a CPU.
        warm_up_seconds: The time of the first steps, compilation included.
        foreseen: The share of the steps in which the fraction that is taken was foreseen; None: not
            a wrapped optimizer.
    """

    optimizer: str
    milliseconds: float
    quartiles: list[float]
    over_fused: float | None
    over_foreach: float | None
    over_momo_opt: float | None
    limit_milliseconds: float
    over_limit: float
    temporary_mib: float
    launches: int | None
    synchronisations: int | None
    warm_up_seconds: float
    foreseen: float | None = None


def costs_of(measurements: Sequence[Measurement], case: Case, bandwidth: float) -> list[Cost]:
    """Put the measurements of a case in relation to each other and to the bandwidth."""
    quartiles = {m.contender.name: _quartiles(m.seconds) for m in measurements}
    medians = {name: median for name, (_, median, _) in quartiles.items()}
    return [_cost(m, quartiles[m.contender.name], medians, case, bandwidth) for m in measurements]


def _cost(
    measurement: Measurement,
    quartiles: list[float],
    medians: Mapping[str, float],
    case: Case,
    bandwidth: float,
) -> Cost:
    contender, calls = measurement.contender, measurement.calls
    family, median = contender.family, quartiles[1]

    def over(name: str) -> float | None:
        return median / medians[name] if name in medians else None

    limit = 1e3 * minimal_bytes(contender, case) / bandwidth
    return Cost(
        optimizer=contender.name,
        milliseconds=median,
        quartiles=quartiles,
        over_fused=over(family.bare("fused")),
        over_foreach=over(family.bare("foreach")),
        over_momo_opt=over(family.momo_opt),
        limit_milliseconds=limit,
        over_limit=median / limit,
        temporary_mib=measurement.temporary_bytes / 2**20,
        launches=None if calls is None else calls.launches,
        synchronisations=None if calls is None else calls.synchronisations,
        warm_up_seconds=measurement.warm_up_seconds,
        foreseen=measurement.foreseen,
    )


def minimal_bytes(contender: Contender, case: Case) -> int:
    """What a step has to read and write at the least, with all states in the parameters' type."""
    return contender.accesses * case.dtype.itemsize * case.elements


def _quartiles(seconds: Sequence[float]) -> list[float]:
    """The quartiles in milliseconds."""
    return [1e3 * float(quartile) for quartile in np.percentile(seconds, [25, 50, 75])]


@dataclass(frozen=True)
class Growth:
    """How the time of a step grows with a size: its slope with both on logarithmic axes."""

    optimizer: str
    sizes: list[int]
    milliseconds: list[float]
    slope: float

    @classmethod
    def of(cls, optimizer: str, points: Mapping[int, float]) -> Growth:
        """Fit the slope to the milliseconds at each size; 1 is linear growth."""
        sizes, milliseconds = list(points), list(points.values())
        return cls(optimizer, sizes, milliseconds, log_log_slope(sizes, milliseconds))


def log_log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the power of `sizes` that fits `values` best, by least squares."""
    logarithms = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return float(np.polyfit(*logarithms, deg=1)[0])
