"""Put the latest results into ``docs/performance.md``, between the markers of that page.

A marker is ``<!-- NAME -->`` up to ``<!-- end -->``; what stands between is ``results/NAME.md``.
"""

from __future__ import annotations

import re

import typer

from benchmarks.measure import RESULTS, ROOT
from nightfold.store import atomic_file

PAGE = ROOT / "docs" / "performance.md"
MARKED = re.compile(r"<!-- (?P<name>\w[\w.]*) -->\n.*?<!-- end -->", re.DOTALL)


def filled(page: str, results: dict[str, str]) -> str:
    """`page` with the text of each result between its markers.

    Parameters
    ----------
    page : str
        Markdown.
    results : dict of str to str
        Markdown of each result by name; one that is missing is said to be.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        text = results.get(name, "Not measured yet.\n")
        title, _, rest = text.partition("\n")
        body = f"**{title.removeprefix('# ')}**\n{rest}" if title.startswith("# ") else text
        return f"<!-- {name} -->\n\n{body.rstrip()}\n\n<!-- end -->"

    return MARKED.sub(fill, page)


def main() -> None:
    """Bring the page up to date with ``benchmarks/results``."""
    results = {path.stem: path.read_text() for path in RESULTS.glob("*.md")}
    page = filled(PAGE.read_text(), results)
    with atomic_file(PAGE) as part:
        part.write_text(page)


if __name__ == "__main__":
    typer.run(main)
