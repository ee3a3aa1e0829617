"""The keys of `data` in params.yaml that belong to texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.modalities.modality import DataOptions
from pipeline.modalities.text.preprocessing import LONGEST, SHORTEST
from pipeline.samples.description import Description

_COLUMNS = ("text", "text_pair", "label", "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions(DataOptions):
    """Columns of tables of texts, and the length of models' inputs.

    Args:
        text: column with the text.
        text_pair: column with a second text, e.g. a hypothesis; None for one text per sample.
        label: column with the label; an empty one means unlabelled. For tags or numbers: a list of columns,
            e.g. [sea, wood], of 1, 0 or nothing, or of numbers; `[tags]`, texts such as `sea;wood`; or a
            column of lists. An empty list for no labels.
        id: column with a unique name of each sample; None names samples by their content.
        vocabulary: number of frequent words of the training texts that `prepare` keeps for tokenizer words,
            1 to 1,000,000.
        max_length: token ids per sample of models trained here, special ones included, 8 to 65,536.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str | tuple[str, ...] = "label"
    id: str | None = None
    vocabulary: int = 20_000
    max_length: int = 128

    def __post_init__(self) -> None:
        columns = wanted_columns(self)
        if len(set(columns)) < len(columns):
            raise ConfigError(
                f"data names the columns {', '.join(columns)}; expected a different one for each key"
            )
        if not 1 <= self.vocabulary <= 1_000_000:
            raise ConfigError(f"vocabulary is {self.vocabulary}; expected 1 to 1,000,000 words")
        if not SHORTEST <= self.max_length <= LONGEST:
            raise ConfigError(
                f"max_length is {self.max_length}; expected {SHORTEST} to {LONGEST:,} token ids"
            )

    @property
    def size(self) -> int | None:
        """Token ids per sample of models trained here."""
        return self.max_length

    def for_models(self) -> dict[str, Any]:
        """Return the options that shape networks and leave prepared data unchanged."""
        return {"max_length": self.max_length}

    def asked(self) -> dict[str, Any]:
        """Return the options that change the prepared data, by name."""
        return {**DataOptions.asked(self), "label": ",".join(label_columns(self.label))}

    def known(self, description: Description) -> dict[str, Any]:
        """Return the options recorded in a prepared dataset."""
        return {name: description.made_with[name] for name in self.asked() if name in description.made_with}

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether an option asks for different data; columns matter to tables alone."""
        table = str(was["source"]).partition(":")[0] not in ("folder", "udhr-languages")
        return bool(was[name] != asked[name]) and (table or name not in _COLUMNS)


def label_columns(label: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of the labels."""
    return (label,) if isinstance(label, str) else label


def wanted_columns(options: TextOptions) -> list[str]:
    """Return the names of the columns that are read."""
    single = (options.text, options.text_pair, *label_columns(options.label), options.id)
    return [name for name in single if name is not None]
