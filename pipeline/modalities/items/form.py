"""Histories as found in a source, as kept in prepared data, and as described in dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.core.errors import DataError
from pipeline.samples.index import Form
from pipeline.samples.intake import ArrayIntake, Entry, Identity, NoStatistics, load_array
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample, Source

# Items of one history; the views number them in 16 bits.
MOST_ITEMS = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsSource(Source):
    """Histories, and the item that comes next as label.

    `classes` is the catalogue: the names of all items. Samples load as (n,) int32, numbers of items in the
    catalogue, the oldest first.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryForm(Form):
    """Storage of histories (n,) int32; made by `history_form`.

    Args:
        items: names of the catalogue, for pictures.
    """

    items: tuple[str, ...] = ()

    noun: ClassVar[str] = "history"
    suffix: ClassVar[str] = "items"
    longest: ClassVar[int] = MOST_ITEMS
    # Many users begin with the same item.
    repeats: ClassVar[bool] = True

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> HistoryForm:
        """Read the storage format from the values of a dataset.json.

        Raises:
            ValueError: not that of histories.
        """
        found = Form.parse(plain)
        if (found.dtype, found.axes, found.unit) != ("int32", 1, ()):
            raise ValueError(f"{found.dtype} with {found.axes} axes; expected int32 with one, of histories")
        return history_form(tuple(map(str, plain["classes"])))


def history_form(items: Sequence[str]) -> HistoryForm:
    """Return the storage format of histories of a catalogue."""
    return HistoryForm(dtype="int32", axes=1, items=tuple(items))


class ItemsIntake(ArrayIntake):
    """Reads histories, and refuses numbers that are no item.

    Args:
        items: names of the catalogue.
    """

    def __init__(self, items: Sequence[str]) -> None:
        super().__init__(history_form(items))
        self._count = len(items)

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Return a history with its digests.

        Raises:
            DataError: an empty history, or a number outside of the catalogue.
        """
        items = load_array(sample)
        if not items.size:
            raise DataError(f"{sample.name}: an empty history; expected at least one item; leave it out")
        entry = super().read(Sample(sample.name, sample.label, lambda: items, sample.file), seat, identity)
        low, high = int(items.min()), int(items.max())
        if low < 0 or high >= self._count:
            raise DataError(
                f"{sample.name}: has items {low} to {high}; expected 0 to {self._count - 1}, numbers in "
                "the catalogue; correct the source"
            )
        return entry

    def describe(self, statistics: NoStatistics) -> dict[str, Any]:
        """Return the size of the catalogue."""
        return {"items": self._count}
