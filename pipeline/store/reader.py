"""Reading a store: one view at a time, each verified against the manifest; rows found by sample key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import Codec
from pipeline.codecs.base import Derivation, StoredDecoder
from pipeline.codecs.rule import Measures
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import CorruptStoreError, MismatchError
from pipeline.core.hashing import Described, difference
from pipeline.places.addresses import removal
from pipeline.places.location import Address, Location
from pipeline.samples.labels import LabelWords
from pipeline.samples.packed import Split
from pipeline.store.arrays import METADATA_BYTES, logits_array, read_state, reading
from pipeline.store.checked import read_checked
from pipeline.store.commands import restoring
from pipeline.store.index import SampleIndex, read_samples
from pipeline.store.labels import LabelChanges, changed_labels
from pipeline.store.layout import GATHERED, ZARR_JSON, ShardId
from pipeline.store.manifest import Manifest
from pipeline.store.summary import summarise_manifest

_DECODED_AT_ONCE = 4096
_Index = slice | NDArray[np.int64]


class SectionReader:
    """Read one split of a store.

    Args:
        location: of the store.
        manifest: the store's.
        name: train, validation or test.
        codec: returns the store's, when rows are decoded.
        allow_drift: find samples by key even if their content is different here.
    """

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        name: str,
        codec: Callable[[], StoredDecoder],
        *,
        allow_drift: bool,
    ) -> None:
        self._location, self._manifest, self._name, self._codec = location, manifest, name, codec
        self._allow_drift = allow_drift
        self._layout = manifest.layout
        # Cached: a view may have many shards, and a remote store answers slowly.
        self._metadata = cache(self._read_metadata)
        section = self._layout.sections[name]
        self.n_samples, self.n_views = section.n_samples, section.n_views

    @cached_property
    def index(self) -> SampleIndex:
        """The samples (N), read on first use."""
        section = self._layout.sections[self._name]
        fetch = partial(self._manifest.find_metadata, self._location)
        header, at_once = self._manifest.header, self._location.reads_at_once
        return read_samples(self._location, header, section, fetch, at_once=at_once)

    def keep_metadata(self) -> None:
        """Read the arrays' metadata now: they change when a store grows while it is open."""
        for array in self._layout.arrays:
            self._metadata(f"{self._name}/{array}/{ZARR_JSON}")

    def rows_of(self, images: Split, *, changed: bool = False) -> NDArray[np.int64]:
        """Return the position of each sample of a split in this section, found by key.

        Args:
            images: the split.
            changed: accept samples with different content in the store.

        Raises:
            MismatchError: a sample is missing from the store, or has different content there.
        """
        return self.index.rows_of(images, str(self._location), changed=changed or self._allow_drift)

    def encoded(self, view: int, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Read one view: the codec's arrays, N rows each; or some rows (n,), in their order.

        Only the shards that hold these rows are read.

        Raises:
            CorruptStoreError: bytes changed since they were written.
        """
        if not 0 <= view < self.n_views:
            raise IndexError(
                f"view {view} of {self._location}; the store has {self.n_views} views, counted from 0"
            )
        # The index is the proof that the store has that many samples, before memory is taken for them.
        count = len(self.index) if rows is None else len(rows)
        with reading(self._location, f"{self._name}, {count:,} samples"):
            arrays = {
                name: np.empty((count, *spec.shape), spec.dtype)
                for name, spec in self._layout.arrays.items()
            }
        jobs: list[Callable[[], None]] = []
        for shard, here, there in self._shards_of(view, rows):
            jobs.extend(partial(self._read_into, a, here, shard, name, there) for name, a in arrays.items())
        _run(jobs, self._location.reads_at_once)
        return arrays

    def _shards_of(
        self, view: int, rows: NDArray[np.int64] | None
    ) -> Iterator[tuple[ShardId, _Index, _Index]]:
        """Yield each shard that holds rows: their places in the result, and in the shard."""
        # Rows of a block land at their samples' positions: unused rows between extents are skipped.
        order = None if rows is None else np.argsort(rows, kind="stable")
        ascending = None if rows is None else rows[order]
        start = 0
        for block in range(len(self._layout.blocks(self._name))):
            shard = ShardId(self._name, view, block)
            stop = start + self._layout.n_rows(shard)
            if rows is None or order is None or ascending is None:
                yield shard, slice(start, stop), slice(None)
            else:
                # Example: rows 7 2 9 of shards of 4 rows: of shard 1 place 0 is its row 3.
                first, last = np.searchsorted(ascending, (start, stop)).tolist()
                if first < last:
                    yield shard, order[first:last], ascending[first:last] - start
            start = stop

    def logits(self, view: int = 0, rows: NDArray[np.int64] | None = None) -> Tensor:
        """Read and decode one view, or some rows of it: (N, C) float32; see `view`."""
        return torch.cat(list(self.decoded(view, rows)))

    def decoded(self, view: int, rows: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
        """Yield the logits of one view, or of some rows of it, a few thousand at a time."""
        arrays = {name: torch.from_numpy(values) for name, values in self.encoded(view).items()}
        chosen = torch.arange(self.n_samples) if rows is None else torch.from_numpy(rows)
        codec = self._codec()
        for start in range(0, len(chosen), _DECODED_AT_ONCE):
            some = chosen[start : start + _DECODED_AT_ONCE]
            batch = {name: values.index_select(0, some) for name, values in arrays.items()}
            yield self._decode(codec, view, batch)

    def decode_shard(self, shard: ShardId, contents: Mapping[str, bytes]) -> Tensor:
        """Decode a shard's verified bytes, by array, to logits (rows, C) float32; on any thread.

        Raises:
            CorruptStoreError: the codec never writes such values.
        """
        arrays = {name: self._values(shard, name, content) for name, content in contents.items()}
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return self._decode(self._codec(), shard.view, batch)

    def _decode(self, codec: StoredDecoder, view: int, batch: Mapping[str, Tensor]) -> Tensor:
        if codec.is_valid is not None and not codec.is_valid(batch):
            raise CorruptStoreError(
                f"{self._location}: {self._name} view {view} has values that codec {codec.name} never "
                f"writes; {restoring(self._location)}"
            )
        return codec.decode(batch)

    def read_shard(self, shard: ShardId, array: str) -> NDArray[Any]:
        """Read one array of a shard's rows.

        Raises:
            CorruptStoreError: bytes changed since they were written.
        """
        return self._values(shard, array, read_checked(self._location, self._manifest, shard, array))

    def _values(self, shard: ShardId, array: str, content: bytes) -> NDArray[Any]:
        name = str(self._layout.shard_file(shard, array))
        stored = logits_array(self._layout, self._layout.sections[self._name], array)
        files = {stored.metadata_file: self._metadata(stored.metadata_file), name: content}
        return stored.decode(self._location, files, (shard.view, self._layout.rows(shard)))

    def _read_into(
        self, out: NDArray[Any], here: _Index, shard: ShardId, array: str, there: _Index
    ) -> None:
        out[here] = self.read_shard(shard, array)[there]

    def _read_metadata(self, name: str) -> bytes:
        return self._manifest.read_metadata(self._location, name, METADATA_BYTES)


class LogitStore:
    """A complete store of cached logits, opened for reading.

    Args:
        location: of the store.
        manifest: read from there.
        allow_drift: accept samples that are decoded or rendered differently from the teacher's.

    Example:
        >>> from pipeline import LogitStore
        >>> store = LogitStore.open("data/logits/main.zarr")
        >>> store.n_views, store.n_samples, store.n_classes
        (3, 68, 3)
        >>> store.view(0).shape
        torch.Size([68, 3])
    """

    def __init__(self, location: Location, manifest: Manifest, *, allow_drift: bool = False) -> None:
        self.location, self.manifest, self.allow_drift = location, manifest, allow_drift
        self.sections = {
            name: SectionReader(location, manifest, name, lambda: self.codec, allow_drift=allow_drift)
            for name in manifest.layout.sections
        }

    @classmethod
    def open(cls, place: Address, *, allow_drift: bool = False, **options: Any) -> LogitStore:
        """Open a store.

        Args:
            place: a folder, a URL, e.g. s3://bucket/main.zarr, or a zarr `Store`.
            allow_drift: accept samples that are decoded or rendered differently from the teacher's.
            options: of the URL's file system, e.g. endpoint_url.

        Raises:
            IncompleteStoreError: the store is unfinished.
            CorruptStoreError: its manifest or metadata changed since they were written.
            MismatchError: this program has a different version of the codec.
            ConfigError: the codec is user code that was not named: see `pipeline/codecs/own_code.py`.
        """
        location = Location(place, **options)
        manifest = Manifest.read(location)
        for name in manifest.metadata:
            if name.endswith((ZARR_JSON, GATHERED)):
                manifest.read_metadata(location, name)
        store = cls(location, manifest, allow_drift=allow_drift)
        for section in store.sections.values():
            section.keep_metadata()
        _ = store.codec  # found now, to refuse it early
        return store

    @cached_property
    def codec(self) -> Codec:
        """The codec, found on first use; see `open` for its errors."""
        fetch = partial(self.manifest.find_metadata, self.location)
        state = read_state(self.location, self.manifest.layout, fetch)
        tensors = {name: torch.from_numpy(values) for name, values in state.items()}
        return self.manifest.header.codec(tensors, str(self.location))

    @property
    def n_views(self) -> int:
        """V, the number of training views."""
        return self.sections["train"].n_views

    @property
    def n_samples(self) -> int:
        """N, the number of training samples."""
        return self.sections["train"].n_samples

    @property
    def keys(self) -> NDArray[np.uint64]:
        """Sample keys of the training rows (N,)."""
        return self.sections["train"].index.keys

    @property
    def views(self) -> Mapping[str, Any]:
        """The views that the teacher saw, in the canonical form of their spec."""
        return self.manifest.header.views

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Name, precision and card of the teacher as plain values."""
        return self.manifest.header.teacher

    @property
    def n_classes(self) -> int:
        """C, the number of classes."""
        return self.manifest.layout.n_classes

    @property
    def measures(self) -> Measures:
        """The link of the outputs, and the names of the codec's costs."""
        return self.manifest.layout.measures

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The name of the teacher, as a tuple of one."""
        return (self.manifest.header.teacher["name"],)

    @property
    def members(self) -> tuple[LogitStore, ...]:
        """The stores of the logits: this one."""
        return (self,)

    @property
    def derivation(self) -> Derivation | None:
        """None: the outputs are stored."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the soft labels."""
        return {**self.manifest.header.fingerprint.to_dict(), "count": self.n_views}

    def require(self, *, views: Described, view_count: int, codec: CodecSpec) -> None:
        """Refuse a store with other views or another codec.

        Raises:
            MismatchError: names the difference.
        """
        header = self.manifest.header
        same_codec = codec.accepts(header.codec_spec, self.codec.name)
        if views.digest != header.fingerprint.views:
            raise MismatchError(
                f"{self.location}: the stored views differ from the dump's parameters: "
                f"{difference(self.views, views.plain)}; correct the parameters, use a new dump name, or "
                f"remove the store with: {removal(self.location)}"
            )
        for what, found, expected, same in (
            ("views.count", self.n_views, view_count, self.n_views == view_count),
            ("codec", header.codec_spec, codec, same_codec),
        ):
            if not same:
                raise MismatchError(
                    f"{self.location}: {what} is {found}; the dump's parameters say {expected}; correct "
                    f"them, use a new dump name, or remove the store with: {removal(self.location)}"
                )

    def require_teacher(self, teacher: Described) -> None:
        """Refuse a teacher other than the one that made the store.

        Raises:
            MismatchError: weights, preprocessing, classes or precision differ.
        """
        self.manifest.header.require_teacher(teacher, str(self.location))

    def rows_of(self, images: Split) -> NDArray[np.int64]:
        """Return the training row of each sample of a split; see `SectionReader.rows_of`."""
        return self.sections["train"].rows_of(images)

    def blocks_of(self, images: Split) -> NDArray[np.int64]:
        """Return the block of each sample (N,); views mix samples only within a block.

        Raises:
            MismatchError: samples of the store are missing from the split, so mixtures cannot be rendered.
        """
        lacking = self.n_samples - len(images)
        section = self.manifest.layout.sections["train"]
        rows = section.rows()[self.sections["train"].rows_of(images, changed=True)]
        if lacking:
            raise MismatchError(
                f"{self.location}: the views mix samples, and {lacking:,} of the store's "
                f"{self.n_samples:,} training samples are not in the data; restore them, or make a dump "
                "without mixup and cutmix"
            )
        blocks: NDArray[np.int64] = rows // self.manifest.layout.shard_rows
        return blocks

    def view(self, view: int) -> Tensor:
        """Read one training view: (N, C) float32 outputs; of a softmax, each row's maximum is 0."""
        return self.sections["train"].logits(view)

    def encoded_view(self, view: int, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Read one training view without decoding it, or some rows (n,) of it, in their order."""
        return self.sections["train"].encoded(view, rows)

    def held_out(self, name: str, images: Split) -> Tensor | None:
        """Return the teacher's logits of un-augmented samples, in the split's order, or None.

        Args:
            name: validation or test.
            images: that split.
        """
        if name not in self.sections or not len(images):
            return None
        section = self.sections[name]
        return section.logits(0, section.rows_of(images))

    def label_changes(self, present: LabelWords) -> LabelChanges:
        """Compare the labels of the dump with those of the data, by split: keys and label words."""
        return changed_labels(self.index, present)

    @property
    def index(self) -> dict[str, SampleIndex]:
        """The samples of each section."""
        return {name: section.index for name, section in self.sections.items()}

    def summary(self) -> dict[str, Any]:
        """Return the figures of `pipeline inspect --json`."""
        return summarise_manifest(self.manifest)


def _run(jobs: list[Callable[[], None]], threads: int) -> None:
    with ThreadPoolExecutor(threads, thread_name_prefix="shard-reader") as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
