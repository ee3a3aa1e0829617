r"""Divide texts into words, and number the distinct words: a view of a text is then an array of integers.

A word is a maximal run between white space. In scripts that are written without spaces, a character with
its combining marks is a word; in Tibetan, a syllable. The scripts are listed here, not asked of a library,
so that words are the same on every machine. A word's piece is the word with the white space before it:
"to be,\n not" has the pieces "to", " be," and "\n not".

A sample is the UTF-8 bytes of one or two texts. Two bytes that UTF-8 never contains stand for a mask and
for the border of two texts. In a `str` they are lone surrogates (Python's `surrogateescape`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Rows, ranges
from pipeline.samples.packed import Split

MASK_BYTE, BORDER_BYTE = 0xFE, 0xFF
MASK, BORDER = "\udcfe", "\udcff"
_ESCAPED = "surrogateescape"

# Thai, Lao; Myanmar; Khmer; Tai Le, New Tai Lue, Khmer symbols; Tai Tham; Balinese; ideographs, kana,
# bopomofo and their punctuation; Yi; Javanese, Myanmar, Tai Viet; wide forms; kana and ideographs of other
# planes.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u2fdf"
    "\u3001-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003fffd"
)
# Combining marks of these scripts.
_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd\u1a55-\u1a5e"
    "\u1a60-\u1a7c\u1a7f\u1b00-\u1b04\u1b34-\u1b44\u1b6b-\u1b73\u302a-\u302f\u3099-\u309a\ua980-\ua983"
    "\ua9b3-\ua9c0\ua9e5\uaa7b-\uaa7d\uaab0\uaab2-\uaab4\uaab7-\uaab8\uaabe-\uaabf\uaac1\uff9e-\uff9f"
)
_TSHEG = "\u0f0b\u0f0c"  # ends a syllable of Tibetan
_PIECE = re.compile(rf"\s*(?:[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}{_TSHEG}]+[{_TSHEG}]?|[{_TSHEG}])")

Ids = NDArray[np.int64]
# Typing errors that are numbered, about 200 MB of them with their ids.
_MOST_TYPED = 1 << 20


def pieces_of(text: str) -> list[str]:
    r"""Return the words of a text, each with the white space before it.

    >>> pieces_of(" to be,\n not")
    [' to', ' be,', '\n not']
    >>> pieces_of("東京 2020年")
    ['東', '京', ' 2020', '年']
    """
    return _PIECE.findall(text)


def divided(piece: str) -> tuple[str, str]:
    """Return a piece's white space and its word."""
    word = piece.lstrip()
    return piece[: len(piece) - len(word)], word


def packed(*texts: str) -> NDArray[np.uint8]:
    """Return a sample (n,) uint8 of one or two texts."""
    return np.frombuffer(BORDER.join(texts).encode("utf-8", _ESCAPED), np.uint8)


def text_of(sample: NDArray[np.uint8]) -> str:
    """Return the text of a sample (n,) uint8; masks and the border are lone surrogates."""
    return sample.tobytes().decode("utf-8", _ESCAPED)


class Dictionary:
    """Pieces by number. It only grows, from any thread; a number is never reused.

    Changes of single words, e.g. to upper case, are numbered once and then looked up in arrays.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._ids: dict[str, int] = {}
        self._lock = Lock()
        # Name of a change -> (pieces,) number of the changed piece, or -1 if not yet known.
        self._changed: dict[str, Ids] = {}
        # Coordinates of a typing error -> number of the changed piece.
        self._typed: dict[int, int] = {}
        self._lengths, self._measured = np.zeros(0, np.int64), 0

    def __len__(self) -> int:
        return len(self.pieces)

    def number(self, pieces: Sequence[str]) -> Ids:
        """Return the numbers (n,) of pieces; new ones are added."""
        ids, known = self._ids, np.empty(len(pieces), np.int64)
        with self._lock:
            for place, piece in enumerate(pieces):
                found = ids.get(piece)
                if found is None:
                    found = ids[piece] = len(self.pieces)
                    self.pieces.append(piece)
                known[place] = found
        return known

    def changed(self, ids: Ids, name: str, change: Callable[[str], str]) -> Ids:
        """Return the numbers (n,) of changed pieces.

        Args:
            ids: (n,) numbers of pieces.
            name: of the change.
            change: maps a piece to a piece.
        """
        memo = self._memo(name)
        unknown = np.unique(ids[memo[ids] < 0])
        if len(unknown):
            found = self.number([change(self.pieces[one]) for one in unknown.tolist()])
            memo = self._memo(name)
            memo[unknown] = found
        return memo[ids]

    @property
    def is_full(self) -> bool:
        """Whether rare changes are no longer numbered: they would fill the memory."""
        return len(self._typed) >= _MOST_TYPED

    def typed(self, keys: Sequence[int], change: Callable[[int], str]) -> Ids:
        """Return the numbers (n,) of pieces with typing errors, each made once.

        Args:
            keys: (n,) coordinates of the errors.
            change: maps a position in `keys` to the changed piece.
        """
        known = self._typed
        places = [place for place, key in enumerate(keys) if key not in known]
        found = self.number([change(place) for place in places]).tolist()
        known.update(zip((keys[place] for place in places), found, strict=True))
        return np.fromiter((known[key] for key in keys), np.int64, len(keys))

    def word_lengths(self, ids: Ids) -> Ids:
        """Return the number of characters (n,) of pieces' words."""
        with self._lock:
            count, total = self._measured, len(self.pieces)
            if count < total:
                lengths = with_room(self._lengths, total)
                lengths[count:total] = [len(piece.lstrip()) for piece in self.pieces[count:total]]
                self._lengths, self._measured = lengths, total
        return self._lengths[ids]

    def _memo(self, name: str) -> Ids:
        """Return the memo of a change, with room for all pieces."""
        memo = self._changed.get(name)
        if memo is None or len(memo) < len(self.pieces):
            # Room for as many again, so that growth costs little. A lost entry is found again.
            larger = np.full(2 * len(self.pieces), -1, np.int64)
            if memo is not None:
                larger[: len(memo)] = memo
            memo = self._changed[name] = larger
        return memo

    def bare(self, ids: Ids) -> Ids:
        """Return the numbers (n,) of pieces without white space before them."""
        return self.changed(ids, "bare", lambda piece: divided(piece)[1])


class WordIndex:
    """The words of a split's texts, as numbers of a dictionary.

    A segment is one of the one or two texts of a sample.

    Args:
        samples: the split.

    Attributes:
        dictionary: the pieces.
        ids: (T,) int32 pieces of all texts, one after the other.
        starts: (segments + 1,) start of each segment in `ids`.
        first: (N + 1,) first segment of each sample.
    """

    def __init__(self, samples: Split) -> None:
        self.dictionary = Dictionary()
        ids, lengths, segments = [], [], []
        for row in range(len(samples)):
            texts = text_of(samples.array(row)).split(BORDER)
            segments.append(len(texts))
            for text in texts:
                found = self.dictionary.number(pieces_of(text))
                ids.append(found.astype(np.int32))
                lengths.append(len(found))
        self.ids = np.concatenate([np.zeros(0, np.int32), *ids])
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.first = np.concatenate([[0], np.cumsum(segments, dtype=np.int64)])

    def words(self, rows: Rows) -> Words:
        """Return the words of some samples (B,), un-augmented."""
        # Sample 0 has two texts with words [0, 1] and [2], sample 1 one text with words [0, 3]:
        #   ids [0, 1, 2, 0, 3]    starts [0, 2, 3, 5]    first [0, 2, 3]
        # Rows [1, 0] give segments [2, 0, 1] of lengths [2, 2, 1]:
        #   ids [0, 3, 0, 1, 2]    owner [0, 0, 1, 1, 2]    samples [0, 1, 1]    part [0, 0, 1]
        counts = self.first[rows + 1] - self.first[rows]
        samples = np.repeat(np.arange(len(rows)), counts)
        part = ranges(counts)
        segments = self.first[rows][samples] + part
        lengths = self.starts[segments + 1] - self.starts[segments]
        number = ranges(lengths)
        ids = self.ids[np.repeat(self.starts[segments], lengths) + number].astype(np.int64)
        owner = np.repeat(np.arange(len(segments)), lengths)
        return Words(self.dictionary, ids, owner, number, samples, part)


def with_room(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the same values in an array with room for `count`; twice as much: growth then costs little."""
    if count <= len(values):
        return values
    larger = np.zeros(2 * count, values.dtype)
    larger[: len(values)] = values
    return larger


class Words:
    """The words of B samples, segment by segment.

    Args:
        dictionary: the pieces.
        ids: (W,) number of each word's piece.
        owner: (W,) segment of each word, ascending.
        number: (W,) number of each word within its un-augmented segment.
        samples: (S,) sample of each segment, ascending, 0..B-1.
        part: (S,) 0 for a sample's first text, 1 for its second.
        typed: pieces that are not in the dictionary, e.g. with typing errors; `ids` of -1, -2, ... are
            their places 0, 1, ....
    """

    __slots__ = ("dictionary", "ids", "number", "owner", "part", "samples", "typed")

    def __init__(
        self,
        dictionary: Dictionary,
        ids: Ids,
        owner: Ids,
        number: Ids,
        samples: Ids,
        part: Ids,
        typed: Sequence[str] = (),
    ) -> None:
        self.dictionary, self.ids, self.owner, self.number = dictionary, ids, owner, number
        self.samples, self.part, self.typed = samples, part, typed

    @property
    def lengths(self) -> Ids:
        """Number of words of each segment (S,)."""
        return np.bincount(self.owner, minlength=len(self.samples))

    def kept(self, keep: NDArray[np.bool_]) -> Words:
        """Return the words (W,) that are true."""
        if keep.all():
            return self
        return self.with_words(self.ids[keep], self.owner[keep], self.number[keep])

    def with_words(
        self,
        ids: Ids,
        owner: Ids | None = None,
        number: Ids | None = None,
        typed: Sequence[str] | None = None,
    ) -> Words:
        """Return the same segments with different words."""
        return Words(
            self.dictionary,
            ids,
            self.owner if owner is None else owner,
            self.number if number is None else number,
            self.samples,
            self.part,
            self.typed if typed is None else typed,
        )

    def begun(self) -> Words:
        """Return the same texts without white space before their first words."""
        first = np.flatnonzero(np.diff(self.owner, prepend=-1))
        ids, typed = self.ids.copy(), list(self.typed)
        known = first[ids[first] >= 0]
        ids[known] = self.dictionary.bare(ids[known])
        for place in ids[first[ids[first] < 0]].tolist():
            typed[~place] = divided(typed[~place])[1]
        return self.with_words(ids, typed=typed)

    def pieces(self) -> list[str]:
        """Return the pieces (W,) as text."""
        known, typed = self.dictionary.pieces, self.typed
        return [known[place] if place >= 0 else typed[~place] for place in self.ids.tolist()]

    def segments(self) -> list[str]:
        """Return the text of each segment (S,)."""
        pieces, ends = self.pieces(), np.cumsum(self.lengths).tolist()
        return ["".join(pieces[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def texts(self) -> list[str]:
        """Return the text of each sample (B,); two texts are joined by the border."""
        joined: list[list[str]] = [[] for _ in range(int(self.samples[-1]) + 1 if len(self.samples) else 0)]
        for sample, segment in zip(self.samples.tolist(), self.segments(), strict=True):
            joined[sample].append(segment)
        return [BORDER.join(parts) for parts in joined]
