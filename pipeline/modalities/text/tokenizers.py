"""Tokenizers: from pieces of text to token ids, and this project's own vocabularies.

`Bytes` and `WordList` are built in, `tokenizer_files.py` reads those of the library `tokenizers`. A
tokenizer says whether the ids of a text are those of its pieces, one after the other; only then may they be
looked up piece by piece (`tokens.py`).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pipeline.core.errors import ModelError
from pipeline.core.hashing import spec_digest
from pipeline.modalities.text.words import MASK, pieces_of

# Ids of this project's own vocabularies, in front of all others.
_PAD, _UNKNOWN, _MASK, _SEPARATOR, _OWN = 0, 1, 2, 3, 4
FILE = "file"
_LEXEME = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The special ids around a text, or around two.

    Args:
        before: in front of the first text.
        between: between two texts.
        after: behind the last text.
        typed: whether the model tells second texts from first ones by token types.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    typed: bool = False

    def room(self, length: int, texts: int) -> int:
        """Return the number of ids left for the texts themselves."""
        between = len(self.between) if texts > 1 else 0
        return length - len(self.before) - len(self.after) - between


class Tokenizer(ABC):
    """From text to token ids 0..size-1."""

    kind: ClassVar[str]
    by_piece = True

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of ids."""

    @property
    def pad(self) -> int:
        """Id that fills a sample behind its end."""
        return _PAD

    @abstractmethod
    def frame(self, texts: int) -> Frame:
        """Return the special ids around one or two texts."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, or piece of one, without special ids around it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain values."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the ids."""
        return spec_digest(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]}" if self.kind == FILE else self.kind

    def identity(self) -> dict[str, Any]:
        """Return kind, size and digest: enough to tell tokenizers apart, not to use one."""
        return {"kind": self.kind, "size": self.size, "digest": self.digest}

    def file(self) -> bytes:
        """Return a JSON file for users of an exported network."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1).encode()


class _Own(Tokenizer):
    """Vocabularies of this project: pad 0, unknown 1, mask 2, and 3 between two texts."""

    def frame(self, texts: int) -> Frame:
        """Return no special ids around a text, and one between two."""
        return Frame(between=(_SEPARATOR,) if texts > 1 else ())


class Bytes(_Own):
    """The bytes of UTF-8, white space included.

    >>> Bytes().encode(["né"])
    [[114, 199, 173]]
    """

    kind = "bytes"
    size = _OWN + 256

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return four more than each byte; a mask is one id."""
        return [[_MASK if byte == 0xFE else _OWN + byte for byte in _as_bytes(text)] for text in texts]

    def to_dict(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": self.kind}


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class WordList(_Own):
    """Frequent words of a dataset, in lower case; punctuation marks are words of their own.

    Args:
        words: the vocabulary, most frequent first.

    >>> WordList(("not", "to", ",")).encode(["To be, not"])
    [[5, 1, 6, 4]]
    """

    words: tuple[str, ...]

    kind: ClassVar[str] = "words"

    @property
    def size(self) -> int:
        """Number of ids."""
        return _OWN + len(self.words)

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return {MASK: _MASK, **{word: _OWN + place for place, word in enumerate(self.words)}}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of lower-case words; others are unknown."""
        return [[self._ids.get(word, _UNKNOWN) for word in lexemes(text)] for text in texts]

    def to_dict(self) -> dict[str, Any]:
        """Return kind and words."""
        return {"kind": self.kind, "words": list(self.words)}


def lexemes(text: str) -> list[str]:
    """Return the words of a text as a word list has them.

    >>> lexemes("Don't  stop.")
    ['don', "'", 't', 'stop', '.']
    """
    return [word for piece in pieces_of(text.lower()) for word in _LEXEME.findall(piece)]


class NamedTokenizer(Tokenizer):
    """A tokenizer of which only size and digest are known, e.g. from a store's header.

    Args:
        kind: its kind.
        size: number of ids.
        digest: SHA-256 (hex).
    """

    def __init__(self, kind: str, size: int, digest: str) -> None:
        self.kind, self._size, self._digest = kind, size, digest  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._size

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the ids."""
        return self._digest

    def frame(self, texts: int) -> Frame:
        """Refuse: the ids are unknown.

        Raises:
            ModelError: always.
        """
        raise self._unknown()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Refuse: the ids are unknown.

        Raises:
            ModelError: always.
        """
        raise self._unknown()

    def _unknown(self) -> ModelError:
        return ModelError(
            f"a store names its teacher's tokenizer by digest alone ({self.digest[:12]}); expected a whole "
            "preprocessing; give that of a checkpoint: load_checkpoint(PATH)[1].preprocessing"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return kind, size and digest."""
        return self.identity()
