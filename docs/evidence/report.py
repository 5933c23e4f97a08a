"""Write the report of the comparison from its raw results: tables, figures, and a summary.

    python -m docs.evidence.report

replaces what is between the markers `<!-- generated: NAME -->` and `<!-- end -->` of
docs/evidence.md; the text around them is not touched. Methods and tasks of which runs are missing
are left out, and named.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from docs.evidence import (
    calibrated,
    figures,
    hard_results,
    long_runs,
    profile_figure,
    steps_to_target,
)
from docs.evidence.candidates import CANDIDATES
from docs.evidence.hard_tasks import HARD_TASKS
from docs.evidence.measures import Comparison, summary
from docs.evidence.plan import RESULTS, SCHEDULES, path_of
from docs.evidence.profiles import PROFILES, SCHEDULE
from docs.evidence.sections import SECTIONS
from docs.evidence.trials import trials
from momo_wrap import sweep

PAGE = Path(__file__).parents[1] / "evidence.md"


def load(folder: Path = RESULTS) -> dict[str, Comparison]:
    """Load the results of all schedules.

    Args:
        folder: Where the files of results are.

    Returns:
        The comparisons by schedule; a schedule without a file is left out.

    Raises:
        FileNotFoundError: There is no file at all.
    """
    paths = {name: path_of(name, folder) for name in SCHEDULES if path_of(name, folder).exists()}
    if not paths:
        raise FileNotFoundError(
            f"There are no results in {folder}, neither {' nor '.join(SCHEDULES)}.csv. "
            "docs/evidence/sweeps.py makes them."
        )
    return {name: Comparison(sweep.load(path)) for name, path in paths.items()}


def generated(comparisons: Mapping[str, Comparison]) -> dict[str, str]:
    """Return the generated sections of the page, by name."""
    return {name: section(comparisons) for name, section in SECTIONS.items()}


def all_sections(folder: Path = RESULTS) -> dict[str, str]:
    """Return the generated sections of the page, those of other files of results among them.

    Args:
        folder: Where the files of results are.
    """
    comparisons = load(folder)
    return {
        **generated(comparisons),
        "in short": calibrated.in_short(comparisons),
        "calibrated": calibrated.section(comparisons),
        "candidates": trials(comparisons["constant"], folder / CANDIDATES.name),
        "hard tasks": hard_results.section(folder / HARD_TASKS.name),
        "long runs": long_runs.section(folder / long_runs.LONG_RUNS.name),
        "profiles": steps_to_target.section(comparisons[SCHEDULE], folder / PROFILES.name),
    }


def replace_sections(page: str, sections: Mapping[str, str]) -> str:
    """Return a page with its generated sections replaced.

    Args:
        page: The page, in Markdown.
        sections: Their text by name.

    Returns:
        The page; all that is outside of the markers is as it was.

    Raises:
        ValueError: The markers of a section are not there just once.
    """
    for name, text in sections.items():
        start = f"<!-- generated: {name} -->"
        within = r"(?:(?!<!-- generated: ).)*?"
        pattern = re.compile(f"{re.escape(start)}\n{within}<!-- end -->", flags=re.DOTALL)
        if page.count(start) != 1 or len(pattern.findall(page)) != 1:
            raise ValueError(
                f"The page must have the lines {start!r} and, after it, '<!-- end -->' once, for "
                f"the section {name!r} to be between; the first is there {page.count(start)} times."
            )
        found = f"{start}\n\n{text}\n\n<!-- end -->"
        page = pattern.sub(lambda _, found=found: found, page)  # type: ignore[misc]
    return page


def write(results: Path, page: Path, output: Path) -> None:
    """Write the report.

    Args:
        results: The folder of the raw results.
        page: The page whose sections are replaced.
        output: The folder of the summary and the figures.
    """
    comparisons = load(results)
    text = replace_sections(page.read_text(encoding="utf-8"), all_sections(results))
    page.write_text(text, encoding="utf-8")
    output.mkdir(parents=True, exist_ok=True)
    summary(comparisons).to_csv(output / "summary.csv", index=False, float_format="%.6g")
    figures.draw(comparisons, output)
    race = steps_to_target.race(comparisons[SCHEDULE], results / PROFILES.name)
    if race is not None:
        profile_figure.draw(race).savefig(output / "profiles.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    arguments = parser.parse_args()
    write(arguments.results, arguments.page, arguments.output)


if __name__ == "__main__":
    main()
