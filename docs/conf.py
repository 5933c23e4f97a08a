"""The settings of Sphinx: `nox -s docs` builds the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import momo_wrap

project = "momo_wrap"
author = "The momo_wrap developers"
version = release = momo_wrap.__version__
copyright = author  # noqa: A001 - Sphinx's name

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "evidence", "performance", "quickstart", "results", "sweep_engines"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

pygments_style = "default"
html_theme = "furo"
html_favicon = "_static/favicon.svg"
html_title = "momo_wrap"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# Trainers need not be installed.
autodoc_mock_imports = ["accelerate", "ignite", "lightning", "torchmetrics", "transformers"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_use_ivar = True
default_role = "code"

FOLDER = Path(__file__).parent


def name_folders(*event: Any) -> None:
    """Links to folders lead somewhere in a repository only: here they are names."""

    def shown(link: re.Match[str]) -> str:
        return link[1] if (FOLDER / link[2]).is_dir() else link[0]

    source: list[str] = event[-1]
    source[0] = re.sub(r"\[([^\]]+)\]\((?!http)([^)#\s]+)\)", shown, source[0])


def keep_equations(*event: Any) -> None:
    """Show the indented paragraphs of docstrings, equations and tables, as they are written."""
    lines: list[str] = event[-1]
    found: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        is_indented = line.startswith("    ")
        if is_indented and not inside and number and not lines[number - 1]:
            found += ["::", ""]
            inside = True
        inside = inside and (is_indented or not line)
        found.append(line)
    lines[:] = found


def setup(app: Any) -> None:
    """Register what happens while the site is built."""
    app.connect("source-read", name_folders)
    app.connect("autodoc-process-docstring", keep_equations, priority=400)  # before napoleon
