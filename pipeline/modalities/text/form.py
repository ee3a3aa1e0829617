"""Storage of texts: the source's form, and the reader of `pipeline prepare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.modalities.text.tokenizers import lexemes
from pipeline.modalities.text.words import BORDER, BORDER_BYTE, pieces_of, text_of
from pipeline.samples.index import Form
from pipeline.samples.intake import ArrayIntake, Entry, Identity, NoStatistics, load_array
from pipeline.samples.packed import Split
from pipeline.samples.processes import LEAST_SAMPLES, in_processes
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample, Source

_LONGEST_WORD = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm(Form):
    """UTF-8 bytes of one or two texts."""

    noun: ClassVar[str] = "text"
    suffix: ClassVar[str] = "texts"

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> TextForm:
        """Read the storage format from the values of a dataset.json.

        Raises:
            ValueError: not that of texts.
        """
        found = Form.parse(plain)
        if (found.dtype, found.axes, found.unit) != ("uint8", 1, ()):
            raise ValueError(f"{found.dtype} with {found.axes} axes; expected uint8 with one, of texts")
        return TEXT


TEXT = TextForm(dtype="uint8", axes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource(Source):
    """A source of texts; samples load as the bytes of `words.packed`."""


class TextIntake(ArrayIntake):
    """Reads texts: refuses broken encodings and empty texts, counts the words of the training split.

    Args:
        vocabulary: number of frequent words to keep.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__(TEXT)
        self._vocabulary = vocabulary
        self._train: Split | None = None

    def plan(self) -> dict[str, Any]:
        """Return nothing: the number of words decides no draft."""
        return {}

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Return a text's bytes with its digests.

        Raises:
            DataError: not UTF-8, or a text without a word.
        """
        array = load_array(sample)
        if array.dtype == np.uint8:  # others are refused below
            require_text(sample.file or sample.name, array)
        return super().read(Sample(sample.name, sample.label, lambda: array, sample.file), seat, identity)

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split that was just written."""
        split = super().open_split(folder, name)
        self._train = split if name == "train" else self._train
        return split

    def describe(self, statistics: NoStatistics) -> dict[str, Any]:
        """Return the frequent words of the training split, which was written before."""
        if self._train is None:
            return {"words": []}
        rows, workers = np.arange(len(self._train)), self.workers
        if workers == 1 or len(rows) < LEAST_SAMPLES:
            found = _count_rows(self._train, rows)
        else:
            parts = [partial(_count_rows, self._train, part) for part in np.array_split(rows, workers)]
            found = sum(in_processes(parts), Counter())
        return {"words": _most_frequent(found, self._vocabulary)}


def frequent_words(texts: Iterable[str], count: int) -> list[str]:
    """Return the `count` most frequent lower-case words, ties in the order of their characters.

    >>> frequent_words(["to be or not", "not to be to"], 3)
    ['to', 'be', 'not']
    """
    return _most_frequent(_count_words(texts), count)


def _most_frequent(found: Counter[str], count: int) -> list[str]:
    return sorted(found, key=lambda word: (-found[word], word))[:count]


def _count_rows(split: Split, rows: NDArray[np.int64]) -> Counter[str]:
    return _count_words(text_of(split.array(row)) for row in rows.tolist())


def _count_words(texts: Iterable[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for text in texts:
        found.update(word for word in lexemes(text.replace(BORDER, " ")) if len(word) <= _LONGEST_WORD)
    return found


def require_text(where: str, array: NDArray[np.uint8]) -> None:
    """Refuse a sample that is not UTF-8, or has a text without a word.

    Raises:
        DataError: naming the sample, and the first wrong byte.
    """
    for part in array.tobytes().split(bytes([BORDER_BYTE])):
        try:
            text = part.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 (byte 0x{part[error.start]:02X} at {error.start}); expected text in "
                "UTF-8; convert it, e.g. iconv -t UTF-8"
            ) from None
        if not pieces_of(text):
            raise DataError(f"{where}: no word in it; expected at least one; remove it, or fill it")


def described_words(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the frequent words of a dataset.json.

    Raises:
        ValueError: they are missing, or not words.
    """
    words: Sequence[Any] = plain.get("words", ())
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words: expected a list of words")
    return tuple(words)
