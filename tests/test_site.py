"""The site builds without a warning, and readers find their way in it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from urllib.parse import urldefrag

import pytest

for needed in ("sphinx", "furo", "myst_nb", "sphinx_design", "sphinx_copybutton"):
    pytest.importorskip(needed, reason="the docs extra is not installed")

DOCS = Path(__file__).parents[1] / "docs"
# Search terms of a reader, and the pages with the answer.
ANSWERS = {
    "how to wrap in Lightning": "trainers.html#lightning",
    "what to do when the loss can be negative": "choose_settings.html#the-lower-bound",
    "what each rule is": "which_rule.html",
    "how to write an adapter": "write_an_adapter.html",
    "how to write a rule": "write_a_rule.html",
    "what MoMoWrapper takes": "api/wrapper.html",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is built, notebooks included, with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    settings = ["-W", "--keep-going", "-q", "-d", str(folder / "trees")]
    command = [sys.executable, "-m", "sphinx", *settings, str(DOCS), str(folder / "html")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def links(page: Path, site: Path) -> set[str]:
    """Return the targets within the site that a page links to."""
    found = re.findall(r'<a [^>]*href="([^"]+)"', page.read_text(encoding="utf-8"))
    local = [urldefrag(target) for target in found if "://" not in target]
    paths = [((page.parent / path).resolve() if path else page, part) for path, part in local]
    return {
        f"{path.relative_to(site).as_posix()}#{part}".rstrip("#")
        for path, part in paths
        if path.is_relative_to(site)
    }


@pytest.mark.slow
def test_answers_are_two_clicks_away(site: Path) -> None:
    first = links(site / "index.html", site)
    pages = {urldefrag(target)[0] for target in first}
    second = [links(site / page, site) for page in pages if page.endswith(".html")]
    reached = first.union(*second)
    missing = {what for what, target in ANSWERS.items() if target not in reached}
    assert not missing
    for target in ANSWERS.values():
        path, part = urldefrag(target)
        assert not part or f'id="{part}"' in (site / path).read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        lost = {
            target for target in links(page, site) if not (site / urldefrag(target)[0]).exists()
        }
        assert not lost, page


@pytest.mark.slow
def test_the_reference_has_all_public_classes_and_functions(site: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")]
    anchors = re.findall(r'id="momo_wrap\.([\w.]+)"', "".join(pages))
    known = {anchor.rsplit(".", 1)[-1] for anchor in anchors}
    for name in ("", ".rules", ".adapters", ".optim", ".research", ".sweep", ".testing"):
        module = import_module(f"momo_wrap{name}")
        public = {n: getattr(module, n) for n in module.__all__}
        described = {n for n, item in public.items() if isclass(item) or isfunction(item)}
        assert described <= known, name
