"""Tokenizers as files: any `tokenizer.json` of the library `tokenizers` (extra `text`), and those of cards.

Cards and stores are untrusted: what they say of a tokenizer is checked here.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipeline.core.errors import ConfigError, ModelError, quoted
from pipeline.core.hashing import bytes_digest
from pipeline.core.package import extra_command
from pipeline.modalities.text.tokenizers import FILE, Bytes, Frame, NamedTokenizer, Tokenizer, WordList
from pipeline.modalities.text.words import MASK

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


@dataclass(frozen=True, eq=False)
class TokenizerFile(Tokenizer):
    """A `tokenizer.json` of the library `tokenizers`.

    Args:
        content: bytes of the file.
        origin: the file, for errors.
    """

    content: bytes
    origin: str = field(default="tokenizer.json", compare=False)

    kind: ClassVar[str] = FILE

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
