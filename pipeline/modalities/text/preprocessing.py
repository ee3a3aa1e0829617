"""Preprocessing of texts: tokenizer, length and truncation, stored with a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError, ModelError, quoted
from pipeline.modalities.preprocessing import UsualPreprocessing
from pipeline.modalities.text.rendering import TextRenderer
from pipeline.modalities.text.spec import TextViews
from pipeline.modalities.text.tokenizer_files import TokenizerFile, parse_tokenizer, read_tokenizer
from pipeline.modalities.text.tokenizers import Bytes, Tokenizer, WordList
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles

SHORTEST, LONGEST = 8, 1 << 16
Truncation = Literal["right", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPreprocessing(UsualPreprocessing):
    """From a text to a model's input: token ids (B, L) int64, L at most `max_length`.

    Args:
        tokenizer: gives the ids.
        max_length: ids per sample, special ones included.
        truncation: the end of a long text that is cut.
        words: the dataset's words, if a tokenizer may still be chosen; None for that of weights.
    """

    tokenizer: Tokenizer
    max_length: int
    truncation: Truncation = "right"
    words: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Ids per sample."""
        return self.max_length

    @property
    def channels(self) -> int:
        """Number of different ids: an id is a one-hot vector of so many channels."""
        return self.tokenizer.size

    @property
    def pad(self) -> int:
        """Id behind the end of a sample."""
        return self.tokenizer.pad

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the whole tokenizer."""
        return self._with(self.tokenizer.to_dict())

    def identity(self) -> dict[str, Any]:
        """Return all settings, with the tokenizer's digest."""
        return self._with(self.tokenizer.identity())

    def _with(self, tokenizer: dict[str, Any]) -> dict[str, Any]:
        return {"tokenizer": tokenizer, "max_length": self.max_length, "truncation": self.truncation}

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> TextPreprocessing:
        """Parse `to_dict` or `identity` from untrusted values.

        Raises:
            ValueError: a value is missing, unknown or out of range.
        """
        if set(plain) != {"tokenizer", "max_length", "truncation"} or not isinstance(
            plain["tokenizer"], Mapping
        ):
            raise ValueError(
                f"preprocessing has {quoted(sorted(plain))}; expected tokenizer, max_length, truncation"
            )
        length, truncation = plain["max_length"], plain["truncation"]
        if type(length) is not int or not SHORTEST <= length <= LONGEST:
            raise ValueError(f"max_length is {quoted(length)}; expected {SHORTEST} to {LONGEST:,}")
        if truncation not in ("right", "left"):
            raise ValueError(f"truncation is {quoted(truncation)}; expected right or left")
        return cls(tokenizer=parse_tokenizer(plain["tokenizer"]), max_length=length, truncation=truncation)

    def with_size(self, size: int) -> TextPreprocessing:
        """Return the same preprocessing for a different number of ids."""
        return replace(self, max_length=size)

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map ids (B, L) of any integer dtype to int64."""
        return rendered.to(torch.int64)

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ids (count, max_length) int32 without padding: all the same, or random."""
        shape = count, self.max_length
        ids = torch.tensor([one for one in range(self.channels) if one != self.pad][:1] or [0])
        if generator is None:
            return ids.to(torch.int32).expand(shape).contiguous()
        drawn = torch.randint(max(1, self.channels - 1), shape, generator=generator)
        return torch.where(drawn >= self.pad, drawn + 1, drawn).clamp(max=self.channels - 1).to(torch.int32)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need.

        Args:
            normalises: whether the network takes int32 ids; if not, int64.
        """
        return {
            "input": {
                "name": "tokens",
                "dtype": "int32" if normalises else "int64",
                "layout": "NL",
                "axes": {"1": "length"},
                "pad": self.pad,
                "normalised": not normalises,
            },
            "preprocessing": self.identity(),
        }

    def attachments(self) -> dict[str, bytes]:
        """Return the tokenizer as a file."""
        return {"tokenizer.json": self.tokenizer.file()}

    def renderer(
        self,
        samples: Split,
        views: TextViews | None,
        pairing: Pairing | Singles,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> TextRenderer:
        """Return a renderer of a split for a model with this preprocessing.

        Raises:
            ConfigError: texts are to be rendered on a device.
        """
        if on_device:
            raise ConfigError("texts are rendered on the CPU; expected --render cpu, or auto; set it")
        return TextRenderer(samples, views, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenText:
    """Overrides of a model's preprocessing; None keeps the value of the weights or of the data.

    Args:
        tokenizer: bytes, words (the dataset's frequent words), or the path of a tokenizer.json.
        vocabulary: number of words of tokenizer words, at least 1; None for all that were kept.
        max_length: token ids per sample, special ones included, 8 to 65,536.
        truncation: the end of a long text that is cut: right or left.
    """

    tokenizer: str | None = None
    vocabulary: int | None = None
    max_length: int | None = None
    truncation: Truncation | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and not SHORTEST <= self.max_length <= LONGEST:
            raise ConfigError(
                f"max_length is {self.max_length}; expected {SHORTEST} to {LONGEST:,} token ids"
            )
        if self.vocabulary is not None and self.vocabulary < 1:
            raise ConfigError(f"vocabulary is {self.vocabulary}; expected at least 1 word")
        if self.vocabulary is not None and self.tokenizer not in (None, WordList.kind):
            raise ConfigError(
                f"vocabulary is set and tokenizer is {self.tokenizer!r}; expected tokenizer words; remove "
                f"one"
            )

    @property
    def size(self) -> int | None:
        """Token ids per sample, or None."""
        return self.max_length

    def said(self) -> dict[str, Any]:
        """Return the given settings; a tokenizer as in `TextPreprocessing.identity`, where its file is "
        "here.
        """
        told = {name: value for name, value in asdict(self).items() if value is not None}
        told.pop("vocabulary", None)
        if self.tokenizer not in (None, Bytes.kind, WordList.kind):
            file = _file_of(str(self.tokenizer))
            if file.is_file():
                told["tokenizer"] = str(TokenizerFile(file.read_bytes()))
            else:
                del told["tokenizer"]
        return told

    def over(self, known: TextPreprocessing) -> TextPreprocessing:
        """Return a known preprocessing with the given settings replaced.

        Raises:
            ModelError: the weights bring their own tokenizer.
            ConfigError: a tokenizer file is missing.
        """
        if known.words is None and (self.tokenizer or self.vocabulary) and not self._names(known.tokenizer):
            raise ModelError(
                f"preprocessing.tokenizer is {self.tokenizer or WordList.kind!r}, and the weights bring "
                f"their own, of kind {known.tokenizer.kind}; expected no other; remove it"
            )
        return TextPreprocessing(
            tokenizer=self._tokenizer(known),
            max_length=self.max_length or known.max_length,
            truncation=self.truncation or known.truncation,
        )

    def _names(self, known: Tokenizer) -> bool:
        """Whether the given tokenizer is the known one: user code that says nothing has it from here."""
        if self.vocabulary is not None or self.tokenizer in (None, WordList.kind):
            return False
        given = Path(str(self.tokenizer))
        if self.tokenizer != Bytes.kind and not given.exists():
            return False
        own = Bytes() if self.tokenizer == Bytes.kind else read_tokenizer(given)
        return own.identity() == known.identity()

    def _tokenizer(self, known: TextPreprocessing) -> Tokenizer:
        if self.tokenizer == Bytes.kind:
            return Bytes()
        if self.tokenizer not in (None, WordList.kind):
            return read_tokenizer(Path(str(self.tokenizer)))
        if known.words is None or (self.tokenizer is None and self.vocabulary is None):
            return known.tokenizer
        return WordList(known.words[: self.vocabulary])

    def alone(self, origin: str) -> TextPreprocessing:
        """Return the preprocessing of a model without a known one.

        Raises:
            ModelError: tokenizer or max_length is missing.
        """
        if self.tokenizer in (None, WordList.kind) or self.max_length is None:
            raise ModelError(
                f"{origin} does not say how it wants its texts; expected preprocessing: "
                f"{{tokenizer, max_length}} of the model in params.yaml, with tokenizer bytes or the path "
                "of a tokenizer.json; add it"
            )
        return self.over(TextPreprocessing(tokenizer=Bytes(), max_length=self.max_length, words=()))


def _file_of(tokenizer: str) -> Path:
    path = Path(tokenizer)
    return path / "tokenizer.json" if path.is_dir() else path
