"""The keys of `data` in params.yaml that belong to items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.modalities.items.form import MOST_ITEMS
from pipeline.modalities.modality import DataOptions
from pipeline.samples.description import Description

# A user needs one item to test on, one to validate on, and one before them.
FEWEST_OF_USER = 3
SHORTEST, LONGEST = 2, MOST_ITEMS
_COLUMNS = ("user", "item", "timestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsOptions(DataOptions):
    """Columns of a log of interactions, the users and items that are kept, and lengths.

    Args:
        user: column of users; None takes `user_id`, `user` or another usual name.
        item: column of items; None takes `item_id`, `item` or another usual name.
        timestamp: column of numbers that order a user's items; None takes `timestamp` or `time`. Without
            such a column the order is random, drawn by user and item.
        min_user_interactions: users with fewer interactions are left out, at least 3.
        min_item_interactions: items with fewer interactions are left out, at least 1. Both limits are
            applied in turn until all users and items hold them.
        samples_per_user: latest training samples of each user, at least 1; None for one per item.
        max_history: items of a history in prepared data, the latest ones, 2 to 32,768.
        max_length: items of a history that models trained here see, the latest ones, 2 to 32,768.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    min_user_interactions: int = 5
    min_item_interactions: int = 5
    samples_per_user: int | None = None
    max_history: int = 200
    max_length: int = 50

    def __post_init__(self) -> None:
        columns = [name for name in (self.user, self.item, self.timestamp) if name is not None]
        if len(set(columns)) < len(columns):
            raise ConfigError(
                f"data names the columns {', '.join(columns)}; expected a different one for each key"
            )
        for name, least in (
            ("min_user_interactions", FEWEST_OF_USER),
            ("min_item_interactions", 1),
            ("samples_per_user", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}")
        for name in ("max_history", "max_length"):
            if not SHORTEST <= getattr(self, name) <= LONGEST:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected {SHORTEST} to {LONGEST:,} items"
                )

    @property
    def size(self) -> int | None:
        """Items per history of models trained here."""
        return self.max_length

    def for_models(self) -> dict[str, Any]:
        """Return the options that shape networks and leave prepared data unchanged."""
        return {"max_length": self.max_length}

    def known(self, description: Description) -> dict[str, Any]:
        """Return the options recorded in a prepared dataset."""
        return {name: description.made_with[name] for name in self.asked() if name in description.made_with}

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether an option asks for different data; columns matter to tables alone."""
        table = ":" in str(was["source"])
        return bool(was[name] != asked[name]) and (table or name not in _COLUMNS)
