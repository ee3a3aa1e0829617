"""Tokenizers: from pieces of text to token ids.

`Bytes` and `WordList` are this project's own. `TokenizerFile` is any `tokenizer.json`, read by the library
`tokenizers` (extra `text`). A tokenizer says whether the ids of a text are those of its pieces, one after
the other; only then may they be looked up piece by piece (`tokens.py`).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipeline.core.errors import ConfigError, ModelError, quoted
from pipeline.core.hashing import bytes_digest, spec_digest
from pipeline.core.package import extra_command
from pipeline.modalities.text.words import MASK, pieces_of

# Ids of this project's own vocabularies, in front of all others.
_PAD, _UNKNOWN, _MASK, _SEPARATOR, _OWN = 0, 1, 2, 3, 4
_PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>", "</s>")
_MASK_TOKENS = ("[MASK]", "<mask>")
_MOST_BYTES = 1 << 28
# Parts of a tokenizer.json that treat each run between white space alone.
_LOCAL_NORMALISERS = (
    "BertNormalizer",
    "Lowercase",
    "StripAccents",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Precompiled",
)
_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace")
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
        return f"{self.kind} {self.digest[:12]}" if self.kind == TokenizerFile.kind else self.kind

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


@dataclass(frozen=True, eq=False)
class TokenizerFile(Tokenizer):
    """A `tokenizer.json` of the library `tokenizers`.

    Args:
        content: bytes of the file.
        origin: the file, for errors.
    """

    content: bytes
    origin: str = field(default="tokenizer.json", compare=False)

    kind: ClassVar[str] = "file"

    @cached_property
    def _library(self) -> Any:
        return _opened(self.content, self.origin)

    @cached_property
    def _spec(self) -> Mapping[str, Any]:
        spec: dict[str, Any] = json.loads(self.content)
        return spec

    @cached_property
    def size(self) -> int:
        """Number of ids, those of added tokens included."""
        return 1 + max(map(int, self._library.get_vocab(with_added_tokens=True).values()))

    @cached_property
    def pad(self) -> int:
        """Id that fills a sample behind its end.

        Raises:
            ModelError: the file names none.
        """
        padding = self._spec.get("padding") or {}
        if "pad_id" in padding:
            return int(padding["pad_id"])
        found = self._first(_PAD_TOKENS)
        if found is None:
            raise ModelError(
                f"{self.origin}: has no padding token; expected one of {', '.join(_PAD_TOKENS)}, or a "
                "'padding' section; save the tokenizer with one"
            )
        return found

    @cached_property
    def mask(self) -> int:
        """Id of a masked word: the mask token, else the unknown one, else padding."""
        model = self._spec.get("model") or {}
        found = self._first((*_MASK_TOKENS, *([model["unk_token"]] if model.get("unk_token") else [])))
        return int(model.get("unk_id") or self.pad) if found is None else found

    def _first(self, tokens: Sequence[str]) -> int | None:
        ids = (self._library.token_to_id(token) for token in tokens)
        return next((int(found) for found in ids if found is not None), None)

    def frame(self, texts: int) -> Frame:
        """Return the ids that the file's post-processor puts around one or two texts."""
        tried = self._library.encode("a", *(["a"] if texts > 1 else []), add_special_tokens=True)
        ids, places = tried.ids, tried.sequence_ids
        inside = [place for place, text in enumerate(places) if text is not None]
        first, last = inside[0], inside[-1]
        between = [place for place in range(first, last) if places[place] is None]
        return Frame(
            before=tuple(ids[:first]),
            between=tuple(ids[place] for place in between),
            after=tuple(ids[last + 1 :]),
            typed=any(tried.type_ids),
        )

    @cached_property
    def by_piece(self) -> bool:  # type: ignore[override]
        """Whether the file's parts treat each run between white space alone, so far as they say."""
        return _splits_on_words(self._spec)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special ids around it."""
        plain = [index for index, text in enumerate(texts) if MASK not in text]
        found: list[list[int]] = [[] for _ in texts]
        # Without offsets, which nobody asks for.
        encoded = self._library.encode_batch_fast(
            [texts[index] for index in plain], add_special_tokens=False
        )
        for index, one in zip(plain, encoded, strict=True):
            found[index] = one.ids
        for index in set(range(len(texts))) - set(plain):
            found[index] = self._with_masks(texts[index])
        return found

    def _with_masks(self, text: str) -> list[int]:
        # The parts between masks, e.g. "to" and " or" of "to MASK or", without white space before a mask.
        first, *others = (self._ids(part.rstrip()) for part in text.split(MASK))
        return [*first, *(one for part in others for one in (self.mask, *part))]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        return bytes_digest(self.content)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and compressed content."""
        return {"kind": self.kind, "content": base64.b64encode(zlib.compress(self.content, 9)).decode()}

    def file(self) -> bytes:
        """Return the file itself."""
        return self.content


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


def read_tokenizer(path: Path) -> TokenizerFile:
    """Read a tokenizer.json, or the one in a folder.

    Raises:
        ConfigError: the file is missing, or not a tokenizer.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{file}: {reason}; expected a tokenizer.json; correct preprocessing.tokenizer"
        ) from None
    tokenizer = TokenizerFile(content, str(file))
    tokenizer.size  # noqa: B018 (opens it)
    return tokenizer


def parse_tokenizer(plain: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of `to_dict` or `identity`, which are untrusted.

    Raises:
        ValueError: not such a description.
    """
    kind = plain.get("kind")
    if set(plain) == {"kind", "size", "digest"}:
        size, digest = plain["size"], plain["digest"]
        fits = (
            type(size) is int and 1 <= size <= 1 << 24 and isinstance(digest, str) and isinstance(kind, str)
        )
        if fits and re.fullmatch(r"[0-9a-f]{64}", digest) and kind in ("bytes", "words", "file"):
            return NamedTokenizer(str(kind), size, digest)
    elif kind == "bytes" and set(plain) == {"kind"}:
        return Bytes()
    elif kind == "words" and set(plain) == {"kind", "words"}:
        words = plain["words"]
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return WordList(tuple(words))
    elif kind == "file" and set(plain) == {"kind", "content"} and isinstance(plain["content"], str):
        return TokenizerFile(_decompressed(plain["content"]), "the card's tokenizer")
    raise ValueError(f"tokenizer is {quoted(plain)}; expected its kind and content")


def _decompressed(text: str) -> bytes:
    """Return at most `_MOST_BYTES` of a compressed content.

    Raises:
        ValueError: it is longer, or not one.
    """
    unpack = zlib.decompressobj()
    try:
        content = unpack.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"tokenizer: {error}") from None
    if not unpack.eof:
        raise ValueError("tokenizer: its content is cut off, or too long")
    return content


def _opened(content: bytes, origin: str) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ModuleNotFoundError:
        raise ConfigError(
            f"{origin} needs the library tokenizers, which is not installed; run: {extra_command('text')}"
        ) from None
    try:
        library = Library.from_str(content.decode())
    except Exception as error:  # the library raises bare exceptions
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{origin}: not a tokenizer ({reason}); expected a tokenizer.json") from None
    library.no_truncation()
    library.no_padding()
    return library


def _splits_on_words(spec: Mapping[str, Any]) -> bool:
    normaliser, splitter = spec.get("normalizer"), spec.get("pre_tokenizer")
    spaced = (
        token for token in spec.get("added_tokens") or () if re.search(r"\s", token.get("content", ""))
    )
    return _all_local(normaliser) and _splits(splitter) and next(spaced, None) is None


def _all_local(part: Mapping[str, Any] | None) -> bool:
    if part is None:
        return True
    if part["type"] == "Sequence":
        return all(map(_all_local, part["normalizers"]))
    return part["type"] in _LOCAL_NORMALISERS


def _splits(part: Mapping[str, Any] | None) -> bool:
    if part is None:
        return False
    if part["type"] == "Sequence":
        return any(map(_splits, part["pretokenizers"]))
    cuts = part.get("use_regex", True) is not False and part.get("split", True) is not False
    return part["type"] in _SPLITTERS and cuts
