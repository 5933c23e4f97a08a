"""Look at every page of the built site in a browser: light and dark, on a desk and on a phone.

    python -m docs.check_site docs/_build/html --screenshots shots

fails where a picture is missing, where a page is wider than the screen, and on errors in the
browser's console. It needs playwright, and Chromium of the system: Debian's package `chromium`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

from playwright.sync_api import sync_playwright

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
MISSING = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without telling of it."""

    def log_message(self, *_: Any) -> None:
        pass


def faults(page: Any, address: str, said: list[str]) -> Iterator[str]:
    """Return the faults of a page; `said` has the messages of its console."""
    said.clear()
    page.goto(address, wait_until="load")
    # Pictures that are loaded when they come into view.
    page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    yield from (f"the picture {source} is missing" for source in page.evaluate(MISSING))
    if (wider := page.evaluate(OVERFLOW)) > 0:
        yield f"the page is {wider} pixels wider than the screen"
    yield from (f"the console says: {text}" for text in said)


def listening(page: Any) -> list[str]:
    """Return a list of the errors in the console, to which later ones are added."""
    said: list[str] = []

    def note(message: Any) -> None:
        if message.type == "error":
            said.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def check(site: Path, screenshots: Path | None) -> list[str]:
    """Return the faults of the pages of a site, and where they are."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for width, scheme in product(WIDTHS, SCHEMES):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said = listening(page)
            for path in sorted(site.rglob("*.html")):
                name = path.relative_to(site).as_posix()
                address = f"http://127.0.0.1:{server.server_port}/{name}"
                where = f"{name} at {width} pixels, {scheme}"
                found += [f"{where}: {fault}" for fault in faults(page, address, said)]
                if screenshots is not None:
                    file = name.removesuffix(".html").replace("/", "-")
                    shot = screenshots / f"{file}-{width}-{scheme}.png"
                    page.screenshot(path=shot, full_page=True)
        browser.close()
    server.shutdown()
    return found


def main() -> None:
    """Check the site that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path)
    arguments = parser.parse_args()
    if shutil.which("chromium") is None:
        sys.exit("There is no chromium on the path. On Debian: apt-get install chromium.")
    if not (arguments.site / "index.html").exists():
        sys.exit(f"There is no site in {arguments.site}. Build it first: nox -s docs.")
    if arguments.screenshots is not None:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    found = check(arguments.site, arguments.screenshots)
    print("\n".join(found) or "Every page is well.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
