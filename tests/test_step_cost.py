"""The benchmark of a step's cost, on a few small tensors, and its arithmetic on known numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.releases import needs_torch

CPU = torch.device("cpu")
MODULES = ("cases", "contenders", "costs", "measuring", "report", "step_cost")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the benchmark, with a tiny case and tiny scales."""
    modules = {name: import_module(f"docs.performance.{name}") for name in MODULES}
    shapes: list[tuple[int, ...]] = [(3,), (2, 4), (5,)]
    case = modules["cases"].Case
    monkeypatch.setitem(modules["cases"].CASES, "tiny", case(shapes))
    monkeypatch.setitem(modules["cases"].CASES, "tiny bf16", case(shapes, torch.bfloat16))
    scales = {"elements": {8: [(8,)], 64: [(64,)]}, "tensors": {2: [(4,)] * 2, 8: [(4,)] * 8}}
    monkeypatch.setattr(modules["step_cost"], "SCALES", scales)
    monkeypatch.setattr(modules["step_cost"], "copy_bandwidth", lambda *_: 1e9)
    return SimpleNamespace(**modules)


def uncompiled(benchmark: Any) -> list[str]:
    """Whoever compiles takes long."""
    contenders = benchmark.contenders.CONTENDERS.items()
    return [name for name, c in contenders if "compiled" not in (c.wrapping or "")]


def measured(benchmark: Any, name: str, milliseconds: list[float], mib: float = 0.0) -> Any:
    return benchmark.measuring.Measurement(
        contender=benchmark.contenders.CONTENDERS[name],
        seconds=[ms / 1e3 for ms in milliseconds],
        temporary_bytes=int(mib * 2**20),
        calls=None,
        warm_up_seconds=0.0,
        foreseen=None,
    )


def known_costs(benchmark: Any, compiled_ms: float = 3.0, compiled_mib: float = 1.0) -> list[Any]:
    measurements = [
        measured(benchmark, "AdamW(foreach)", [6.0], mib=400.0),
        measured(benchmark, "AdamW(fused)", [1.0, 2.0, 5.0]),
        measured(benchmark, "AdamW(foreach) wrapped", [8.0], mib=410.0),
        measured(benchmark, "AdamW(fused) wrapped, compiled", [compiled_ms], mib=compiled_mib),
        measured(benchmark, "AdamW(fused) wrapped, proposing", [9.0], mib=1000.0),
        measured(benchmark, "MomoAdam (momo-opt)", [15.0], mib=500.0),
    ]
    case = benchmark.cases.Case([(100,), (10, 90)])
    costs: list[Any] = benchmark.costs.costs_of(measurements, case, bandwidth=36e6)
    return costs


def test_end_to_end(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    # Of each family what ratios are formed with, and a wrapper; others step in another test.
    names = [
        "AdamW(foreach)",
        "AdamW(fused)",
        "AdamW(fused) wrapped",
        "MomoAdam (momo-opt)",
        "SGD-M(foreach)",
        "SGD-M(fused)",
        "SGD-M(fused) wrapped",
        "Momo (momo-opt)",
    ]
    settings = ["--device", "cpu", "--rounds", "2", "--json", str(path), "--only", *names]
    benchmark.step_cost.main(["--case", "tiny", *settings])
    benchmark.step_cost.main(["--case", "tiny bf16", "--scale", *settings])

    raw = json.loads(path.read_text())
    assert list(raw["cases"]) == ["tiny", "tiny bf16"]
    assert {"device_name", "threads", "torch", "python", "machine", "date", "rounds", "seed"} <= (
        raw["cases"]["tiny"]["environment"].keys() & raw["scale"]["environment"].keys()
    )
    printed = capsys.readouterr().out
    results = benchmark.report.Results.load(path)
    for case in results.cases.values():
        assert (case.elements, case.tensors, case.bandwidth) == (16, 3, 1e9)
        assert benchmark.report.table(case.costs) in printed
        assert [cost.optimizer for cost in case.costs] == names
        check_ratios(case.costs)
    for what, growths in results.scale.growths.items():
        assert benchmark.report.scale_table(what, growths) in printed
        assert [growth.sizes for growth in growths] == [list(benchmark.step_cost.SCALES[what])] * 6


def check_ratios(costs: list[Any]) -> None:
    ms = {cost.optimizer: cost.milliseconds for cost in costs}
    for cost in costs:
        family = "SGD-M" if "SGD-M" in cost.optimizer or cost.optimizer[:5] == "Momo " else "AdamW"
        momo_opt = {"AdamW": "MomoAdam (momo-opt)", "SGD-M": "Momo (momo-opt)"}[family]
        assert cost.over_fused == cost.milliseconds / ms[f"{family}(fused)"]
        assert cost.over_foreach == cost.milliseconds / ms[f"{family}(foreach)"]
        assert cost.over_momo_opt == cost.milliseconds / ms[momo_opt]
        assert cost.over_limit == cost.milliseconds / cost.limit_milliseconds
        assert cost.quartiles[0] <= cost.quartiles[1] == cost.milliseconds <= cost.quartiles[2]


def test_a_case_that_is_run_again_is_replaced(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--json", str(path), "--rounds", "1", "--case", "tiny"]
    for name in ("AdamW(fused)", "AdamW(foreach)"):
        benchmark.step_cost.main([*arguments, "--only", name])
    (cost,) = benchmark.report.Results.load(path).cases["tiny"].costs
    assert cost.optimizer == "AdamW(foreach)"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_of_known_times(benchmark: Any) -> None:
    costs = {cost.optimizer: cost for cost in known_costs(benchmark)}
    fused, compiled = costs["AdamW(fused)"], costs["AdamW(fused) wrapped, compiled"]
    assert fused.quartiles == pytest.approx([1.5, 2.0, 3.5])
    ratios = compiled.over_fused, compiled.over_foreach, compiled.over_momo_opt
    assert ratios == pytest.approx((1.5, 0.5, 0.2))
    # 1000 elements at 28 and 36 bytes, 36 bytes in a microsecond
    assert compiled.limit_milliseconds == pytest.approx(1.0)
    assert fused.limit_milliseconds == pytest.approx(28 / 36)
    assert compiled.over_limit == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AdamW(foreach)", 28),
        ("AdamW(fused) wrapped, proposing", 36),
        ("MomoAdam (momo-opt)", 36),
        ("SGD-M(single)", 20),
        ("SGD-M(fused) wrapped", 24),
        ("Momo (momo-opt)", 24),
    ],
)
def test_minimal_bytes(benchmark: Any, name: str, expected: int) -> None:
    contender = benchmark.contenders.CONTENDERS[name]
    for dtype, share in ((torch.float32, 1), (torch.bfloat16, 2)):
        case = benchmark.cases.Case([(3,), (2, 2)], dtype)
        assert benchmark.costs.minimal_bytes(contender, case) == 7 * expected // share


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_is_its_exponent(benchmark: Any, exponent: float) -> None:
    points = {size: 0.3 * size**exponent for size in (10, 100, 3_000)}
    growth = benchmark.costs.Growth.of("an optimizer", points)
    assert growth.slope == pytest.approx(exponent, abs=1e-9)
    assert growth.sizes == [10, 100, 3_000]


def test_promises(benchmark: Any) -> None:
    check = benchmark.step_cost.check
    check(known_costs(benchmark))
    with pytest.raises(AssertionError, match=r"0\.267 of momo-opt's time"):
        check(known_costs(benchmark, compiled_ms=4.0))
    with pytest.raises(AssertionError, match="include the compiled"):
        check(known_costs(benchmark)[:1])
    with pytest.raises(AssertionError, match="compiled takes 65 MiB more than its base"):
        check(known_costs(benchmark, compiled_mib=65.0))


def test_launches_and_synchronisations_are_distinguished_from_other_calls(benchmark: Any) -> None:
    launches = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"]
    waits = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"]
    others = ["cudaMemcpyAsync", "Memcpy DtoH (Device -> Pageable)", "aten::item", "cudaEventQuery"]
    others += ["cudaMemsetAsync", "cudaLaunchHostFunc", "cudaStreamIsCapturing", "cudaMalloc"]
    calls = benchmark.measuring.DeviceCalls.among([*launches, *launches, *waits, *others])
    assert (calls.launches, calls.synchronisations) == (8, 4)


def test_columns_of_a_cuda_device(benchmark: Any) -> None:
    cost = benchmark.costs.Cost("one", 12.0, [12.0] * 3, 1.5, None, None, 6.0, 2.0, 3.0, 7, 0, 1.0)
    lines = benchmark.report.table([cost]).splitlines()
    assert lines[0].endswith("| temporary MiB | launches | synchronisations |")
    assert lines[2] == "| one | 12.0 | 1.50 |  |  | 2.00 | 3.0 | 7 | 0 |"


def test_times_far_apart_are_reported(benchmark: Any) -> None:
    costs = known_costs(benchmark)
    assert benchmark.report.noise(costs) == (
        "Not a quiet machine: quartiles far apart for AdamW(fused)."
    )
    assert benchmark.report.noise([c for c in costs if c.optimizer != "AdamW(fused)"]) is None


@needs_torch(2, 5, "the profiler tells when a call has ended")
def test_only_calls_during_the_step_are_named(benchmark: Any) -> None:
    names = benchmark.measuring.names_of_calls(lambda: torch.ones(3).add(1))
    assert "aten::add" in names
    assert all(name.startswith("aten::") for name in names)


def test_temporary_memory_is_the_peak(benchmark: Any) -> None:
    def step() -> torch.Tensor:
        for _ in range(3):
            torch.empty(2**20, dtype=torch.uint8)
        return torch.empty(2**10, dtype=torch.uint8)

    assert benchmark.measuring.temporary_bytes(step, CPU) == 2**20


def test_no_contender_writes_to_the_shared_gradients(benchmark: Any) -> None:
    for name in uncompiled(benchmark):
        gradients = [torch.full((4,), 0.5), torch.full((3, 2), -0.5)]
        params = [torch.ones_like(gradient, requires_grad=True) for gradient in gradients]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient.clone()
        contender = benchmark.contenders.CONTENDERS[name]
        optimizer = contender.make(params)
        loss = {} if contender.is_bare else {"loss": torch.tensor(1.0)}
        for _ in range(3):
            optimizer.step(**loss)
        for param, gradient in zip(params, gradients, strict=True):
            assert param.grad is not None
            torch.testing.assert_close(param.grad, gradient, rtol=0, atol=0)


def test_a_billion_parameters_raise_on_a_cpu(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.step_cost.main(["--case", "billion", "--device", "cpu"])
    assert "'billion' is only for a CUDA device" in capsys.readouterr().err


def test_what_fits_in_memory(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = benchmark.cases.Case([(1000,)])
    adam = [c for c in benchmark.contenders.CONTENDERS.values() if c.family.states == 2]
    batch_size, copy = benchmark.measuring.batch_size, 4000 / 0.9
    for copies, expected in ((7, 0), (8, 1), (13, 2), (14, 3), (1000, len(adam))):
        assert batch_size(case, adam, int(copies * copy) + 1) == expected
    monkeypatch.setattr(benchmark.step_cost, "free_bytes", lambda *_: 2**30)
    obstacle = benchmark.step_cost.obstacle(benchmark.cases.CASES["one"], CPU)
    assert obstacle == "does not fit in the 1 GiB of the cpu"
    assert benchmark.step_cost.obstacle(benchmark.cases.CASES["tiny"], CPU) is None


def test_a_contender_that_does_not_fit_raises(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.measuring, "free_bytes", lambda *_: 100)
    contenders = list(benchmark.contenders.CONTENDERS.values())[:2]
    with pytest.raises(MemoryError, match="16 elements"):
        benchmark.measuring.measure(contenders, benchmark.cases.CASES["tiny"], CPU, 1, 0)


def test_batches_are_measured_one_after_the_other(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.measuring, "batch_size", lambda *_: 2)
    names = ["AdamW(single)", "AdamW(foreach)", "AdamW(fused)"]
    contenders = [benchmark.contenders.CONTENDERS[name] for name in names]
    measurements = benchmark.measuring.measure(
        contenders, benchmark.cases.CASES["tiny"], CPU, rounds=4, seed=0
    )
    assert [m.contender.name for m in measurements] == names
    assert [len(m.seconds) for m in measurements] == [4, 4, 4]
