"""Preprocessing of histories: the catalogue's size and the length of a model's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError, ModelError, quoted
from pipeline.modalities.items.options import LONGEST, SHORTEST
from pipeline.modalities.items.rendering import FIRST, PAD, ItemsRenderer
from pipeline.modalities.items.spec import ItemsViews
from pipeline.modalities.preprocessing import UsualPreprocessing
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles

_MOST_ITEMS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsPreprocessing(UsualPreprocessing):
    """From a history to a model's input: ids (B, L) int64, L at most `max_length`, padded in front.

    Id 0 is padding, item c has id c + 1, and C + 1 hides an item.

    Args:
        items: C, the size of the catalogue.
        max_length: items per history, the latest ones.
    """

    items: int
    max_length: int

    @property
    def size(self) -> int:
        """Items per history."""
        return self.max_length

    @property
    def channels(self) -> int:
        """Number of different ids: an id is a one-hot vector of so many channels."""
        return self.items + 2

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> ItemsPreprocessing:
        """Parse `to_dict` from untrusted values.

        Raises:
            ValueError: a value is missing, unknown or out of range.
        """
        if set(plain) != {"items", "max_length"}:
            raise ValueError(f"preprocessing has {quoted(sorted(plain))}; expected items, max_length")
        items, length = plain["items"], plain["max_length"]
        if type(items) is not int or not 1 <= items <= _MOST_ITEMS:
            raise ValueError(f"items is {quoted(items)}; expected 1 to {_MOST_ITEMS:,}")
        if type(length) is not int or not SHORTEST <= length <= LONGEST:
            raise ValueError(f"max_length is {quoted(length)}; expected {SHORTEST} to {LONGEST:,}")
        return cls(items=items, max_length=length)

    def with_size(self, size: int) -> ItemsPreprocessing:
        """Return the same preprocessing for a different number of items."""
        return replace(self, max_length=size)

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map ids (B, L) of any integer dtype to int64."""
        return rendered.to(torch.int64)

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ids (count, max_length) int32 without padding: all the first item, or random ones."""
        shape = count, self.max_length
        if generator is None:
            return torch.full(shape, FIRST, dtype=torch.int32)
        return torch.randint(FIRST, self.items + FIRST, shape, generator=generator, dtype=torch.int32)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need.

        Args:
            normalises: whether the network takes int32 ids; if not, int64.
        """
        return {
            "input": {
                "name": "items",
                "dtype": "int32" if normalises else "int64",
                "layout": "NL",
                "axes": {"1": "length"},
                "pad": PAD,
                "first": FIRST,
                "padded": "in front",
                "normalised": not normalises,
            },
            "preprocessing": self.to_dict(),
        }

    def renderer(
        self,
        samples: Split,
        views: ItemsViews | None,
        pairing: Pairing | Singles,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> ItemsRenderer:
        """Return a renderer of a split for a model with this preprocessing.

        Raises:
            ConfigError: histories are to be rendered on a device.
        """
        if on_device:
            raise ConfigError("histories are rendered on the CPU; expected --render cpu, or auto; set it")
        return ItemsRenderer(samples, views, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenItems:
    """Overrides of a model's preprocessing; None keeps the value of the weights or of the data.

    Args:
        max_length: items per history that the model sees, the latest ones, 2 to 32,768.
    """

    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and not SHORTEST <= self.max_length <= LONGEST:
            raise ConfigError(f"max_length is {self.max_length}; expected {SHORTEST} to {LONGEST:,} items")

    @property
    def size(self) -> int | None:
        """Items per history, or None."""
        return self.max_length

    def said(self) -> dict[str, Any]:
        """Return the given settings."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, known: ItemsPreprocessing) -> ItemsPreprocessing:
        """Return a known preprocessing with the given settings replaced."""
        return replace(known, **self.said())

    def alone(self, origin: str) -> ItemsPreprocessing:
        """Refuse: a model without a card does not say which items its ids are.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{origin} does not say how many items it knows; expected a checkpoint with a card; train it "
            "with pipeline train-teacher"
        )
