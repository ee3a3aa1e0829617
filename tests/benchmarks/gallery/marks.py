"""Marked places of a Markdown document: tables between two comments, figures before a comment.

Knows no results: the texts come from `Shown` entries by name, e.g. those of `contents.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.benchmarks.gallery.results import NOT_RUN, Shown

_NUMBER = r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
# A number, with its standard error or its range: 9.4e-4, 64.48 ± 0.14, 0.98 [0.96, 1.07].
FIGURE = re.compile(rf"(?<![\w.,]){_NUMBER}(?:\s±\s{_NUMBER})?(?:\s\[{_NUMBER},\s{_NUMBER}\])?")
_MARK = r"<!-- figure: (?P<name>[\w-]+) -->"
_FIGURES = re.compile(rf"(?P<text>{FIGURE.pattern})?{_MARK}")
_TABLES = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n(?P<text>.*?)\n*<!-- /table -->", re.S)
_ROWS = re.compile(r"(?:^\|.*\n?)+", re.M)
_FENCE = re.compile(r"^```\w*\n.*?^```$", re.M | re.S)


def names(text: str) -> tuple[set[str], set[str]]:
    """Return the names of a document's marked tables and of its marked figures."""
    tables, figures = (
        {match["name"] for match in pattern.finditer(text)} for pattern in (_TABLES, _FIGURES)
    )
    return tables, figures


def rewritten(text: str, tables: Mapping[str, Shown], figures: Mapping[str, Shown]) -> str:
    """Return a document with the present texts at its marked places.

    A figure that is broken over two lines stays so while its value is the same.

    Raises:
        ValueError: a name is unknown, or no figure stands before a figure's mark.

    >>> shown = Shown(make=lambda: "0.98 [0.96, 1.07]")
    >>> rewritten("It takes 0.5<!-- figure: epoch --> of the time.", {}, {"epoch": shown})
    'It takes 0.98 [0.96, 1.07]<!-- figure: epoch --> of the time.'
    """

    def table(match: re.Match[str]) -> str:
        found = _entry(tables, match).text()
        found = "Not run yet." if found == NOT_RUN else found
        return f"<!-- table: {match['name']} -->\n{found}\n<!-- /table -->"

    def figure(match: re.Match[str]) -> str:
        if match["text"] is None:
            raise ValueError(f"expected a figure right before '{match[0]}'")
        found = _entry(figures, match).text()
        same = re.sub(r"\s", " ", match["text"]) == found
        return match[0] if same else f"{found}<!-- figure: {match['name']} -->"

    return _FIGURES.sub(figure, _TABLES.sub(table, text))


def _entry(shown: Mapping[str, Shown], match: re.Match[str]) -> Shown:
    if match["name"] not in shown:
        raise ValueError(
            f"unknown name '{match['name']}' in a mark; add it to tests/benchmarks/gallery/contents.py"
        )
    return shown[match["name"]]


def unmarked_tables(text: str) -> Iterator[str]:
    """Yield the first line of each table that has digits below its head and stands outside marks.

    >>> list(unmarked_tables("| a |\\n|---|\\n| 7 |\\n\\n| b |\\n|---|\\n| no digits |\\n"))
    ['| a |']
    """
    for match in _ROWS.finditer(_FENCE.sub("", _TABLES.sub("", text))):
        head, *body = match[0].splitlines()
        if any(re.search(r"\d", row) for row in body):
            yield head
