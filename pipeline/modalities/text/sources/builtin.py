"""The built-in texts: short snippets of the Universal Declaration of Human Rights, to tell languages apart.

`builtin/udhr_languages.md` has origin, licence and selection. Snippets of 12 to 40 characters are cut from
the articles; training, validation and test snippets come from different articles, since translations of the
Declaration repeat themselves within an article.
"""

from __future__ import annotations

import itertools
import json
import lzma
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError
from pipeline.core.hashing import sample_key
from pipeline.core.random import Lane, below, draw, lanes_of
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.words import packed, pieces_of
from pipeline.samples.samples import Sample, Samples
from pipeline.samples.splits import TEST, TRAIN

SHORTEST, LONGEST = 12, 40
_Row = tuple[str, int, str]  # name, label, text
VALIDATION = "validation"
# Article 0 is the preamble; articles that are not named here train.
_SPLIT_OF: Mapping[int, str] = {
    **dict.fromkeys((3, 8, 13, 18, 23, 28), TEST),
    **dict.fromkeys((5, 15, 25), VALIDATION),
}
# Snippets per language and split, spread over the split's articles.
MOST: Mapping[str, int] = {TRAIN: 60, VALIDATION: 10, TEST: 20}


def open_languages(detail: str, options: TextOptions) -> TextSource:
    """Open the built-in snippets; their classes are languages."""
    if detail:
        raise ConfigError(
            f"data.source is 'udhr-languages:{detail}'; expected udhr-languages alone; correct it"
        )
    found: dict[str, list[_Row]] = {split: [] for split in MOST}
    for label, language in enumerate(languages()):
        for split, rows in _split_snippets(language, label).items():
            found[split] += rows
    # Formulas such as "everyone has the right" recur in many articles, and in related languages.
    known = {text for _, _, text in found[TRAIN]}
    for split in (VALIDATION, TEST):
        found[split] = [row for row in found[split] if row[2] not in known]
        known |= {text for _, _, text in found[split]}
    samples = {split: _samples(_spread_by_label(rows, MOST[split])) for split, rows in found.items()}
    return TextSource(
        classes=tuple(str(language["name"]) for language in languages()),
        train=samples[TRAIN],
        validation=samples[VALIDATION],
        test=samples[TEST],
        forks=True,
    )


@cache
def languages() -> list[dict[str, Any]]:
    """Return the languages: code, name, and articles, each a list of paragraphs."""
    packaged = files("pipeline.modalities.text") / "builtin" / "udhr_languages.json.xz"
    languages: list[dict[str, Any]] = json.loads(lzma.decompress(packaged.read_bytes()))
    return languages


def _split_snippets(language: Mapping[str, Any], label: int) -> dict[str, list[_Row]]:
    """Return the snippets of a language per split."""
    found: dict[str, list[_Row]] = {split: [] for split in MOST}
    for number, paragraphs in enumerate(language["articles"]):
        split = _SPLIT_OF.get(number, TRAIN)
        name = f"{language['code']}/{number:02d}"
        texts = snippets(" ".join(paragraphs), name)
        found[split] += [(f"{name}/{place:03d}", label, text) for place, text in enumerate(texts)]
    return found


def snippets(text: str, name: str) -> Iterator[str]:
    """Cut a text into snippets of 12 to 40 characters, at the ends of words, drawn by the name."""
    numbers = np.arange(len(text) // SHORTEST + 1)
    keys = np.full(len(numbers), sample_key(name), np.uint64)
    drawn = draw(seed=0, view=0, keys=keys, lane=lanes_of(Lane.WORD_SPAN, numbers))[0]
    # Up to 36, so that few snippets are cut within their last word.
    wanted = iter((SHORTEST + below(drawn, LONGEST - SHORTEST - 3).astype(np.int64)).tolist())
    snippet, length = "", next(wanted)
    for piece in pieces_of(text):
        if len(snippet) >= length:
            yield snippet.strip()[:LONGEST]
            snippet, length = "", next(wanted)
        snippet += piece
    if len(snippet.strip()) >= SHORTEST:
        yield snippet.strip()[:LONGEST]


def _spread_by_label(rows: list[_Row], most: int) -> list[_Row]:
    """Return at most `most` rows of each label, evenly spread; rows of a label stand together."""
    chosen = []
    for _, group in itertools.groupby(rows, lambda row: row[1]):
        some = list(group)
        chosen += [some[row] for row in spread(len(some), most).tolist()]
    return chosen


def _samples(rows: list[_Row]) -> Samples:
    def make(row: int) -> Sample:
        name, label, text = rows[row]
        return Sample(name, label, lambda: packed(text))

    return Samples(make, np.arange(len(rows)))
