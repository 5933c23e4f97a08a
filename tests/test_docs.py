"""The Python in README and docs runs, and its links lead somewhere."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from momo_wrap.adapters import registry
from tests import optimizer_table
from tests.releases import needs_torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def a_model() -> dict[str, Any]:
    """The names that short snippets assume: a model, and data to train it on."""
    model = torch.nn.Linear(4, 1)
    inputs, targets = torch.randn(32, 4), torch.randn(32, 1)
    return {
        "torch": torch,
        "model": model,
        "batches": [(inputs, targets)] * 3,
        "loss_function": torch.nn.functional.mse_loss,
    }


# When torch's compiler is imported, and when it looks at a loss that it is given.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@needs_torch(2, 9, "torch.optim.Muon, which the pages use")
@pytest.mark.parametrize(
    "page",
    [
        # It ends by checking all laws of its adapter.
        pytest.param(p, marks=[pytest.mark.slow] if p.name == "write_an_adapter.md" else [])
        for p in PAGES
        if snippets(p)
    ],
    ids=lambda page: page.name,
)
def test_snippets_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The snippets of a page build on each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    names = {"__name__": "snippet", **a_model()}
    for snippet in snippets(page):
        exec(compile(snippet, page.name, "exec"), names)
    assert "model" in names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if not target.startswith("http")]
    assert all((page.parent / target).exists() for target in local), local


def test_cost_tables_are_the_measured_ones() -> None:
    results = import_module("docs.performance.report")
    measured = results.Results.load(ROOT / "docs" / "performance" / "results" / "step_cost.json")
    transformer = measured.cases["transformer"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    costs = {cost.optimizer: cost for cost in transformer.costs}
    known = costs["AdamW(fused) wrapped, compiled, foreseen"]
    shortened = costs["AdamW(fused) wrapped, compiled"]
    assert f"over {transformer.elements / 1e6:.0f} M float32 parameters" in readme
    assert f"takes {known.over_fused:.2f} times the bare step of AdamW(fused) if" in readme
    assert f"and {shortened.over_fused:.2f} times if it is shortened" in readme
    foreach = f"{known.over_foreach:.2f} and {shortened.over_foreach:.2f} of AdamW(foreach)"
    momo_opt = f"{known.over_momo_opt:.2f} and {shortened.over_momo_opt:.2f} of momo-opt's MomoAdam"
    assert f"{foreach}, {momo_opt}" in readme
    page = (ROOT / "docs" / "performance.md").read_text()
    assert set(measured.cases) == {"transformer", "small", "one", "bf16"}
    assert all(results.table(case.costs) in page for case in measured.cases.values())
    assert measured.scale is not None
    for what, growths in measured.scale.growths.items():
        assert results.scale_table(what, growths) in page


def test_table_of_passes_is_the_measured_one() -> None:
    fusion = import_module("docs.performance.fusion")
    measured = json.loads((ROOT / "docs" / "performance" / "results" / "fusion.json").read_text())
    assert fusion.table(measured["families"]) in (ROOT / "docs" / "performance.md").read_text()


def test_table_of_sixteen_bits_is_the_measured_one() -> None:
    script = import_module("docs.performance.sixteen_bits")
    measured = json.loads(
        (ROOT / "docs" / "performance" / "results" / "sixteen_bits.json").read_text()
    )
    assert script.table(measured) in (ROOT / "docs" / "performance.md").read_text()


def test_table_of_small_models_is_the_measured_one() -> None:
    benchmark = import_module("docs.performance.small_models")
    result = json.loads((ROOT / "docs/performance/results/small_models.json").read_text())
    page = (ROOT / "docs/performance.md").read_text()
    assert benchmark.table(result) in page
    operations = result["operations"]
    more = [operations[name] - operations["bare"] for name in ("MoMo", "TrustedMoMo")]
    assert f"takes {more[0]} operations more than the {operations['bare']} of the bare" in page
    assert f"(TrustedMoMo\n{more[1]} more)" in page


def test_quickstart_table_is_the_measured_one() -> None:
    pytest.importorskip("sklearn", reason="the examples extra is not installed")
    seeds = import_module("docs.quickstart.seeds")
    results = seeds.sweep.load(seeds.RESULTS / "seeds.csv")
    assert len(results) == 12 * 6 * 13
    assert set(results["status"]) == {"ok"}
    assert seeds.table(results) in (ROOT / "README.md").read_text()
    assert seeds.typical_seed(results) == seeds.quickstart.SEED


def test_every_page_is_in_the_navigation() -> None:
    """The blocks in docs/index.md that make the sidebar."""
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set("\n".join(re.findall(r"\{toctree\}(.*?)```", index, re.DOTALL)).split())
    assert {page.stem for page in PAGES[1:]} - {"index"} <= listed


def test_tables_of_optimizers_are_those_of_the_code() -> None:
    """`python -m tests.optimizer_table` prints them again."""
    page = (ROOT / "docs" / "optimizers.md").read_text()
    assert optimizer_table.table() in page
    assert optimizer_table.wrapped_of_pytorch_optimizer() in page
    readme = (ROOT / "README.md").read_text()
    assert optimizer_table.summary() in readme
    count = optimizer_table.wrapped_of_pytorch_optimizer().split()[0]
    assert f"with {count} of\npytorch-optimizer tested one by one" in readme


def test_adapter_of_the_page_is_that_of_the_example() -> None:
    (adapter,) = re.findall(
        r"^class AdaBeliefAdapter.*?(?=\n\n\n)",
        (ROOT / "examples" / "custom_adapter.py").read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
    assert len(adapter.splitlines()) < 40
    assert f"{adapter}\n```" in (ROOT / "docs" / "write_an_adapter.md").read_text()


def test_rule_of_the_page_is_that_of_the_example() -> None:
    example = (ROOT / "examples" / "custom_rule.py").read_text()
    (rule,) = re.findall(r"^class SlowRise.*?(?=\n\n\n)", example, flags=re.DOTALL | re.MULTILINE)
    assert sum(bool(line.strip()) for line in example.splitlines()) < 40
    assert f"{rule}\n```" in (ROOT / "docs" / "write_a_rule.md").read_text()
