"""The documents of the repository as data: their fenced blocks, links and headings.

A comment right before a Python block holds its setup, as Python that runs first:

    <!-- test: epochs = 2 -->
    <!-- test: pytest.importorskip("timm") -->

A block whose first line is a comment with a file name, e.g. `# mine.py`, is also written to that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRONT = ROOT / "README.md"
_PLACES = (".github", "pipeline", "stages", "tests")
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for path in (FRONT, *(found for place in _PLACES for found in sorted((ROOT / place).rglob("*.md"))))
}
# Documents for readers, without the data sheets of the built-in files.
READMES = {
    name: path
    for name, path in DOCUMENTS.items()
    if path.name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_SETUP = re.compile(r"<!-- test: ((?:(?!-->).)*?) -->\n*\Z", re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.*)$", re.M)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Args:
        language: the word after the fence, "" for none.
        code: the text inside.
        line: the number of its first line in the document, from 1.
        setup: Python that runs before it, "" for none.
    """

    language: str
    code: str
    line: int
    setup: str


def blocks(path: Path, language: str | None = None) -> list[Block]:
    """Return the fenced blocks of a document, of one language or of all."""
    text, found = path.read_text(), []
    for match in _FENCE.finditer(text):
        setup = _SETUP.search(text, 0, match.start())
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], line, setup[1] if setup else ""))
    return [block for block in found if language in (None, block.language)]


def block_with(path: Path, words: str) -> str:
    """Return the only Python block of a document that contains these words."""
    (code,) = (block.code for block in blocks(path, "python") if words in block.code)
    return code


def links(path: Path) -> Iterator[str]:
    """Yield the targets of a document's links; links in code do not count."""
    text = _FENCE.sub("", path.read_text())
    yield from (match[1] for match in _LINK.finditer(re.sub(r"`[^`\n]*`", "", text)))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, by GitHub's rules."""
    text = _FENCE.sub("", path.read_text())
    found: set[str] = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(n for n in range(len(text)) if (f"{anchor}-{n}" if n else anchor) not in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a document, numbered from 1, without fenced blocks and tables."""
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = line.startswith("```")
        if not (fenced or fence or line.startswith("|")):
            yield number, line
        fenced ^= fence
