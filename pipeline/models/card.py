"""The card of a checkpoint: architecture, preprocessing, classes.

The card is `NAME.json` beside `NAME.pt`. Cards are untrusted data, so every field is checked here, at the
edge. A card may name code; `core/trust.py` decides whether to run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from pipeline.core.errors import ModelError, quoted
from pipeline.core.files import write_json
from pipeline.core.forms import first_problem
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.modalities.table import DEFAULT, find_modality, modality_of
from pipeline.models.architecture import Architecture
from pipeline.models.embedder import Normalise
from pipeline.samples.description import CLASSES

_MOST_CLASSES = 1_000_000
# Token ids of a text model are one-hot channels.
_MOST_CHANNELS = 1 << 24
_IMAGE_CHANNELS = 1, 3
_MOST_BYTES = 1 << 28
_Channel = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Description of a checkpoint's network.

    Args:
        architecture: how to build the network.
        preprocessing: preprocessing of its samples.
        classes: class names of the logits, in order.
        modality: modality of its samples, e.g. `images`.
        task: task, i.e. the meaning of its outputs.

    """

    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    modality: str = DEFAULT
    task: str = CLASSES

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values; with the weights they determine a teacher's logits."""
        return {
            **({} if self.modality == DEFAULT else {"modality": self.modality}),
            **({} if self.task == CLASSES else {"task": self.task}),
            "architecture": self.architecture.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
        }

    def identity(self) -> dict[str, Any]:
        """Return the card for a store's header, which has digests of large parts, e.g. of a tokenizer."""
        return {**self.to_dict(), "preprocessing": self.preprocessing.identity()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModelCard:
        """Return the card from the values of `to_dict`."""
        return cls(
            architecture=Architecture.from_dict(value["architecture"]),
            preprocessing=find_modality(modality_of(value)).preprocessing(value["preprocessing"]),
            classes=tuple(value["classes"]),
            modality=modality_of(value),
            task=str(value.get("task", CLASSES)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFile:
    """A card as stored on disk.

    Args:
        card: the network's card.
        weights_sha256: digest of the tensors written with the card; older cards have None.
    """

    card: ModelCard
    weights_sha256: str | None = None

    def write(self, path: Path) -> None:
        """Write the card to a file, atomically."""
        plain = {**self.card.to_dict(), **self.card.preprocessing.notes()}
        digest = {} if self.weights_sha256 is None else {"weights_sha256": self.weights_sha256}
        write_json(path, {**plain, **digest})

    @classmethod
    def read(cls, path: Path) -> CardFile:
        """Read a card.

        Raises:
            ModelError: the file is missing or not a card.
        """
        return _parse(_content(path), path)


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)


class _Architecture(_Part):
    name: Annotated[str, Field(max_length=200, pattern=r"^[\w:./@+-]+$")]
    num_classes: Annotated[int, Field(ge=1, le=_MOST_CLASSES)]
    channels: Annotated[int, Field(ge=1, le=_MOST_CHANNELS)] = 3
    stem_stride: Literal[1, 2, 4] = 4
    options: dict[str, Any] = {}
    selected: tuple[Annotated[int, Field(ge=0, lt=_MOST_CLASSES)], ...] = ()
    output: Annotated[str, Field(max_length=200, pattern=r"^(embedding|(layer|cls):[\w.]+)?$")] = ""
    normalise: Normalise = "none"
    width: Annotated[int, Field(ge=0, le=_MOST_CLASSES)] = 0


class _File(_Part):
    model_config = pydantic.ConfigDict(extra="ignore")

    architecture: _Architecture
    preprocessing: dict[str, Any]
    classes: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=_MOST_CLASSES)]
    modality: _Text = DEFAULT
    task: _Text = CLASSES
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> _File:
        if self.modality == DEFAULT and self.architecture.channels not in _IMAGE_CHANNELS:
            raise ValueError(
                f"architecture.channels is {self.architecture.channels}: input should be 1 or 3"
            )
        selected = self.architecture.selected
        if selected and len(selected) != len(self.classes):
            raise ValueError(f"{len(selected)} selected logits for {len(self.classes)} classes")
        return self


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise IsADirectoryError(None, "not a file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; {path.stem} needs its card beside it; run the stage that writes both "
            "(pipeline train-teacher or train-student)"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; expected a model card file") from None
    if len(content) > _MOST_BYTES:
        raise ModelError(f"{path}: not a model card (larger than {_MOST_BYTES:,} bytes); write it again")
    return content


def _parse(content: bytes, path: Path) -> CardFile:
    try:
        file = _File.model_validate_json(content)
        known = find_modality(file.modality)
        _require_notes(json.loads(content), known.preprocessing(file.preprocessing))
    except ValueError as error:
        problem = first_problem(error) if isinstance(error, pydantic.ValidationError) else str(error)
        raise ModelError(
            f"{path}: not a model card ({problem}); expected the card that was written with the "
            "checkpoint; write it again, or move it away if it belongs to something else"
        ) from None
    # Built from the raw JSON, so that 1 and 1.0 stay different: both enter a teacher's digest.
    return CardFile(card=ModelCard.from_dict(json.loads(content)), weights_sha256=file.weights_sha256)


def _require_notes(content: Mapping[str, Any], preprocessing: Preprocessing) -> None:
    """Refuse a card whose notes contradict the rules of its preprocessing.

    Raises:
        ValueError: the message names the rule.
    """
    for name, rule in preprocessing.notes().items():
        if content.get(name, rule) != rule:
            raise ValueError(f"{name} is {quoted(content[name])}; expected {rule!r}")
