"""A growth: new views or samples of a complete store, kept beside it until all of them are written.

    NAME.zarr/growth/
      zarr.json, {train,validation,test}/…, codec/…   the frame of the store after the growth
      {train,validation,test}/ARRAY/c/…               the missing shards
      records/                                        a record per new shard
      catalogues/                                     of the new shards, once none is missing

Meanwhile the complete store keeps every byte. Replacing its manifest publishes the growth atomically; then
the files move to their places. Until they have moved, readers find them here, because a file counts by its
digest. Shards for more views than are published stay here for the next growth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.core.hashing import bytes_digest
from pipeline.core.progress import note
from pipeline.places.addresses import removal
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.places.place import required
from pipeline.store.faults import files_in
from pipeline.store.frame import build_frame, frame_files, read_state
from pipeline.store.header import Header
from pipeline.store.index import Index, read_index
from pipeline.store.layout import GATHERED, GROWTH, MANIFEST, ZARR_JSON, ShardId
from pipeline.store.ledger import Records
from pipeline.store.leftovers import remove_empty_folders
from pipeline.store.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An unfinished growth.

    Args:
        folder: of the growth.
        n_views, n_samples: of the training split after the growth.
        done, total: shards that the growth adds.
    """

    folder: Root
    n_views: int
    n_samples: int
    done: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        shards = {"total": self.total, "done": self.done}
        return {"n_views": self.n_views, "n_samples": self.n_samples, "shards": shards}

    def __str__(self) -> str:
        if not self.total:
            return (
                f"unfinished upgrade in {self.folder}; finish it with: pipeline verify "
                f"{next(at(self.folder).parents())} --upgrade, or remove it with: {removal(self.folder)}"
            )
        return (
            f"unfinished growth to {self.n_views} views of {self.n_samples:,} samples in {self.folder} "
            f"({self.done} of {self.total} shards are done); finish it with views.count: {self.n_views}, "
            f"or remove it with: {removal(self.folder)}"
        )


def growth_folder(path: Root) -> Root:
    """Return the folder of a store's growth."""
    return path / GROWTH


def writing_folder(path: Root) -> Root:
    """Return the folder that gets a store's next shards: its growth, if it is complete."""
    return growth_folder(path) if at(path).exists(MANIFEST) else path


def frame_folder(path: Root) -> Root:
    """Return the folder of a store's frame: its growth, from publishing until the files have moved."""
    if not is_growing(path) or not at(path).exists(MANIFEST):
        return path
    try:
        header = _header(path)
    except CorruptStoreError:
        # A published growth has a whole header; this one is damaged, so it is not published.
        return path
    return growth_folder(path) if is_complete(path, header) else path


def read_growth(path: Root) -> tuple[Header, Index]:
    """Return the header and the samples of a store's growth.

    Raises:
        CorruptStoreError: they cannot be read.
    """
    header = _header(path)
    with _explaining(path):
        return header, read_index(growth_folder(path), header)


def is_complete(path: Root, header: Header) -> bool:
    """Whether a store is complete and its manifest's header equals this one."""
    return at(path).exists(MANIFEST) and Manifest.read(Location(path)).header.says_the_same_as(header)


def begun_as(path: Root, header: Header) -> bool:
    """Whether a store's unfinished growth is to become this one."""
    return _header(path).says_the_same_as(header)


def is_growing(path: Root) -> bool:
    """Whether a store has a growth, published or not."""
    return at(growth_folder(path)).exists(ZARR_JSON)


def pending(path: Root) -> Pending | None:
    """Return a complete store's unfinished growth, or None."""
    if not is_growing(path) or not at(path).exists(MANIFEST):
        return None
    folder, manifest, header = growth_folder(path), Manifest.read(Location(path)), _header(path)
    if header.says_the_same_as(manifest.header):
        return None
    train, layout = header.layout.sections["train"], manifest.layout
    lacking = {shard for shard in header.layout.shards() if not layout.holds(shard)}
    return Pending(
        folder=folder,
        n_views=train.n_views,
        n_samples=train.n_samples,
        done=len(Records(folder).read(header, lacking)),
        total=len(lacking),
    )


def tell_pending(path: Root) -> None:
    """Print a note if a complete store has an unfinished growth."""
    try:
        growth = pending(path)
    except StoreError as error:
        note(str(error))
    else:
        if growth:
            note(f"{path}: {growth}")


def prepare_growth(path: Root, header: Header, *, index: Index, state: Mapping[str, Tensor]) -> None:
    """Build the frame of a complete store's growth, or resize the frame of an unfinished one.

    Args:
        path: the store's folder; nothing outside its growth is touched.
        header: of the store after the growth.
        index: the samples of each section.
        state: the codec's state, which the store keeps once.
    """
    folder = growth_folder(path)
    if not is_growing(path):
        # Without a header nothing proves to which store these records belong.
        Records(folder).clear()
        # Copy all but the root's zarr.json: `build_frame` writes that last, and only then is it a growth.
        for name in sorted(frame_files(path) - {ZARR_JSON}):
            at(folder).put(name, required(at(path), name))
    build_frame(folder, header, index=index, state=state)


def settle(path: Root) -> None:
    """Move the files of a published growth to their places; call it at the store's gate."""
    folder = growth_folder(path)
    if not is_growing(path):
        _remove(folder)  # leftovers of a killed removal or copy
    if frame_folder(path) == path:
        return
    # The manifest is already replaced, so each step below may be killed and is repeated at the next gate.
    manifest = Manifest.read(Location(path))
    there, layout, ours = files_in(folder), manifest.layout, manifest.catalogue_files()
    shards = (shard for name in there if (shard := layout.shard_of(name)) is not None)
    own = {str(layout.shard_file(shard, array)) for shard in shards for array in layout.arrays}
    at(folder).move(sorted(there & own), at(path))
    at(folder).move(sorted(there & set(ours)), at(path))
    for name in sorted(there & set(manifest.metadata)):
        content = at(folder).get(name)
        # A file with a different digest belongs to the next growth, begun from this one's files and killed.
        if content is not None and bytes_digest(content) == manifest.metadata[name]:
            at(path).put(name, content)
    at(folder).delete([GATHERED])
    records = Records(folder)
    records.drop(layout)
    records.clear_catalogues()
    if surplus := records.shards():
        _keep(folder, manifest.header, surplus)
    else:
        _remove(folder)


def forget_work(path: Root, manifest: Manifest) -> None:
    """Remove the records of a complete store, and catalogues that its manifest does not name.

    A run killed between the manifest and this removal leaves them to the next one.
    """
    records = Records(path)
    records.clear()
    records.clear_catalogues(set(manifest.catalogue_files().values()))
    if GATHERED not in manifest.metadata:
        at(path).delete([GATHERED])


def set_aside(path: Root, header: Header, shards: Collection[ShardId]) -> None:
    """Move finished shards of extra views from an unfinished store to its growth.

    Args:
        path: the store's folder.
        header: of the store.
        shards: the shards with views beyond the header's.
    """
    if not shards:
        return
    folder, records = growth_folder(path), Records(growth_folder(path))
    surplus = Records(path).read(_with_views_of(header, shards), shards)
    if not is_growing(path):
        index, state = read_index(path, header), read_state(path, header.layout)
        prepare_growth(path, _with_views_of(header, shards), index=index, state=state)
    # Files first, record second: the growth never has a record without its files.
    for shard, finished in surplus.items():
        names = [str(header.layout.shard_file(shard, array)) for array in header.layout.arrays]
        at(path).move([name for name in names if at(path).exists(name)], at(folder))
        records.write(shard, finished.record, header.origin)
    Records(path).drop(shards)


def _header(path: Root) -> Header:
    with _explaining(path):
        return Header.read(Location(growth_folder(path)))


@contextmanager
def _explaining(path: Root) -> Iterator[None]:
    """Explain how to remove an unreadable growth: the complete store does not need it."""
    try:
        yield
    except StoreError as error:
        reason, folder = str(error).partition(";")[0], growth_folder(path)
        raise CorruptStoreError(
            f"{reason}; the store does not need this unfinished growth; remove it with: {removal(folder)}"
        ) from None


def _with_views_of(header: Header, shards: Iterable[ShardId]) -> Header:
    return header.with_views(1 + max(shard.view for shard in shards))


def _keep(folder: Root, published: Header, surplus: Iterable[ShardId]) -> None:
    """Keep shards of views beyond the published ones for the next growth."""
    index, state = read_index(folder, published), read_state(folder, published.layout)
    build_frame(folder, _with_views_of(published, surplus), index=index, state=state)


def _remove(folder: Root) -> None:
    """Remove the leftovers of a growth; the header first, because it marks the folder as a growth."""
    if isinstance(folder, Path) and not folder.is_dir():
        return
    at(folder).delete([ZARR_JSON])
    records = Records(folder)
    records.clear()
    records.clear_catalogues()
    at(folder).delete(sorted({*frame_files(folder), GATHERED}))
    remove_empty_folders(folder)
