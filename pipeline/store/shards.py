"""The records of a complete store's shards, read from its catalogues when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from threading import Lock

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError
from pipeline.places.location import Location
from pipeline.store.arrays import reason
from pipeline.store.catalogue import Catalogue, most_bytes
from pipeline.store.commands import restoring
from pipeline.store.faults import MISSING, look_up
from pipeline.store.header import Header
from pipeline.store.layout import ShardId, Span, catalogue_file
from pipeline.store.records import Recorded, ShardRecord

_KEPT = 16


class Catalogues(Mapping[ShardId, ShardRecord]):
    """The records of all shards, catalogue by catalogue; a few catalogues stay in memory.

    Args:
        location: of the store.
        header: of the store.
        digests: SHA-256 (hex) of the catalogue of each span, by the name of its first shard.
        copies: whether a whole copy stands in for a damaged catalogue, for a repair.
    """

    def __init__(
        self, location: Location, header: Header, digests: Mapping[str, str], *, copies: bool = False
    ) -> None:
        self._location, self._header, self.digests, self._copies = location, header, digests, copies
        self._kept: OrderedDict[Span, Catalogue] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Callable[..., Catalogues], tuple[object, ...]]:
        """Leave the lock behind, and what is in memory: other processes read catalogues themselves."""
        return partial(Catalogues, copies=self._copies), (self._location, self._header, self.digests)

    def __getitem__(self, shard: ShardId) -> ShardRecord:
        return self.of(shard).record(shard)

    def __len__(self) -> int:
        return self._header.layout.n_shards

    def __iter__(self) -> Iterator[ShardId]:
        return (shard for span in self._header.layout.spans() for shard in span.shards())

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, ShardId) and self._header.layout.holds(shard)

    def of(self, shard: ShardId) -> Catalogue:
        """Return the catalogue of a shard.

        Raises:
            KeyError: the layout lacks the shard.
            IncompleteStoreError, CorruptStoreError: the catalogue is missing, or is not the manifest's.
        """
        if shard not in self:
            raise KeyError(shard)
        return self.read(self._header.layout.span_of(shard))

    def read(self, span: Span) -> Catalogue:
        """Return the catalogue of a span; see `of` for errors."""
        # One thread at a time: several that read a view's shards ask for the same catalogue.
        with self._lock:
            if span not in self._kept:
                self._kept[span] = self._read(span)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[span]

    def _read(self, span: Span) -> Catalogue:
        digest, layout = self.digests[str(span)], self._header.layout
        name = catalogue_file(digest)
        content, problem = look_up(self._location, name, digest, most_bytes=most_bytes(layout, span))
        if problem and self._copies:
            with suppress(CorruptStoreError):
                copy = catalogue_file(digest, copy=True)
                content, problem = look_up(
                    self._location, copy, digest, most_bytes=most_bytes(layout, span)
                )
        told = f"{self._location}/{name}: the catalogue of {_told(span)}"
        if problem == MISSING:
            raise IncompleteStoreError(f"{told} {problem}; {restoring(self._location)}")
        if content is None or problem:
            raise CorruptStoreError(f"{told} {problem}; {restoring(self._location)}")
        try:
            catalogue = Catalogue.parse(content)
            if catalogue.span != span:
                raise ValueError(f"it is of {_told(catalogue.span)}")
            catalogue.require(layout, self._header.origin)
        except ValueError as error:
            raise CorruptStoreError(
                f"{told} cannot be read ({reason(error)}); {restoring(self._location)}"
            ) from None
        return catalogue


class Joined(Mapping[ShardId, Recorded]):
    """The finished shards of a store and of its growth.

    Args:
        growth, store: the shards of both.
    """

    def __init__(self, growth: Mapping[ShardId, Recorded], store: Mapping[ShardId, Recorded]) -> None:
        self._growth, self._store = growth, store

    def __getitem__(self, shard: ShardId) -> Recorded:
        return self._growth[shard] if shard in self._growth else self._store[shard]

    def __contains__(self, shard: object) -> bool:
        """Without this, `in` would read a catalogue."""
        return shard in self._growth or shard in self._store

    def __iter__(self) -> Iterator[ShardId]:
        return chain(self._store, (shard for shard in self._growth if shard not in self._store))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _told(span: Span) -> str:
    """Describe a span for people.

    >>> _told(Span("train", 3, 0, 13))
    'train view 3, blocks 0 to 12,'
    """
    return f"{span.section} view {span.view}, blocks {span.first} to {span.first + span.count - 1},"
