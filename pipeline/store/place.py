"""The place of a store: check that a folder may become a store, tidy it, remove it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path

from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.places.addresses import removal
from pipeline.places.failures import ForbiddenError
from pipeline.places.folder import Root, at
from pipeline.places.local import require_own_folders
from pipeline.places.location import Location
from pipeline.places.place import Place, Tag
from pipeline.store.commands import restoring
from pipeline.store.faults import files_in
from pipeline.store.frame import frame_files
from pipeline.store.growth import forget_work, settle
from pipeline.store.layout import GATHERED, GROWTH, HEAD, MANIFEST, ZARR_JSON
from pipeline.store.ledger import Records
from pipeline.store.leftovers import (
    is_passing,
    is_shard_file,
    named,
    remove_empty_folders,
    remove_files,
)
from pipeline.store.manifest import Manifest
from pipeline.store.reference import NOUNS, Kind, kind_of

# A new file system's root has this folder.
_OF_THE_DISK = "lost+found"
Form = tuple[Tag | None, ...]


def behind_links(path: Root) -> Root:
    """Return the folder behind a link, even if that folder does not exist yet; a place has no links."""
    return path.resolve() if isinstance(path, Path) and path.is_symlink() else path


def require_store_or_nothing(path: Root) -> None:
    """Refuse a place that is no store and cannot become one.

    Raises:
        CorruptStoreError: the place has a manifest but no header.
        StoreError: the place holds something else, or lies inside a store.
    """
    _require_folder_of_its_own(path)
    if at(path).exists(ZARR_JSON):
        return
    problem = _no_place(path)
    # Another process may have created a store in between.
    if problem and not at(path).exists(ZARR_JSON):
        raise problem


def require_reference_or_nothing(path: Root, kind: Kind) -> None:
    """Refuse a place that is no ensemble, or no re-headed store, and cannot become one.

    Args:
        path: the folder.
        kind: the requested one.

    Raises:
        StoreError: the place holds something else, or lies inside a store.
    """
    _require_folder_of_its_own(path)
    if at(path).exists(ZARR_JSON):
        raise StoreError(
            f"{path}: is a logit store, but {NOUNS[kind]} was requested; choose a different name, or "
            f"remove the store with: {removal(path)}"
        )
    found = kind_of(path)
    if found not in ("logits", kind):
        raise StoreError(
            f"{path}: is {NOUNS[found]}, but {NOUNS[kind]} was requested; choose a different name, or "
            f"remove it with: {removal(path)}"
        )
    others = sorted(name for name in _files(path) - {MANIFEST, HEAD} if not is_passing(name))
    if others and found != kind:
        raise StoreError(
            f"{path}: contains other files ({named(others)} in it); expected {NOUNS[kind]} or an empty "
            "folder; choose a different --out"
        )


def form_of(path: Root) -> Form:
    """Return the state of the files that say what a store is: its root, its growth's root, its manifest.

    Two equal forms mean that the store was neither created, nor grown, nor completed in between.
    """
    return tuple(at(path).tag(name) for name in (ZARR_JSON, f"{GROWTH}/{ZARR_JSON}", MANIFEST))


def partial_folder(path: Path) -> Path:
    """Return a folder of its own for building a store that is then renamed at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _partial_folders(path: Path) -> list[Path]:
    """Return the folders of killed runs; older versions had one name for all."""
    return [
        path.with_name(f".{path.name}.partial"),
        *path.parent.glob(f".{escape(path.name)}.????????.partial"),
    ]


def clean(path: Root, half_written: Iterable[str]) -> None:
    """Finish work that a killed writer had published, and remove its leftovers; call it at the gate.

    Args:
        path: the store's folder, which may not exist yet; it has passed `require_store_or_nothing`.
        half_written: names of files to remove, found before; none while other processes write the store.
    """
    if isinstance(path, Path):
        for folder in _partial_folders(path):
            # Renamed first: who builds it still, without working locks, loses all of it or nothing.
            taken = partial_folder(path)
            with suppress(OSError):
                folder.rename(taken)
            shutil.rmtree(taken, ignore_errors=True)
    if at(path).exists(MANIFEST):
        settle(path)
        forget_work(path, Manifest.read(Location(path)))
    remove_files(path, half_written)


def discard(path: Root) -> None:
    """Remove a store's files and no others; remove its folder too, unless it is a disk's root."""
    files = files_in(path)
    own = {name for name in files if is_shard_file(name)} | (frame_files(path) - {ZARR_JSON})
    Records(path).clear()
    Records(path).clear_catalogues()
    # The header last: until then the folder counts as a store.
    at(path).delete(sorted(own))
    at(path).delete(sorted(files & {GATHERED}))
    at(path).delete([ZARR_JSON])
    with suppress(OSError):
        remove_empty_folders(path)


def _require_folder_of_its_own(path: Root) -> None:
    if isinstance(path, Path):
        if path.is_file():
            raise StoreError(
                f"{path}: is a file; expected a folder for the store; choose a different --out"
            )
        if path.is_dir():
            require_own_folders(path)
    for around in at(path).parents():
        if _is_store(around):
            raise StoreError(f"{path}: is inside another store, {around}; choose an --out outside of it")


def _is_store(place: Place) -> bool:
    # Credentials of one prefix may not read those around it.
    with suppress(ForbiddenError):
        return place.exists(ZARR_JSON) or kind_of(place) != "logits"
    return False


def _no_place(path: Root) -> StoreError | None:
    """Return the reason why a folder without a store cannot become one, or None."""
    if (found := kind_of(path)) != "logits":
        return StoreError(
            f"{path}: is {NOUNS[found]}, but a logit store was requested; choose a different name"
        )
    if at(path).exists(MANIFEST):
        return CorruptStoreError(f"{path}: {ZARR_JSON} is missing; {restoring(path)}")
    others = sorted(name for name in _files(path) - frame_files(path) if not is_passing(name))
    if not others:
        return None
    return StoreError(
        f"{path}: contains files but no {ZARR_JSON} ({named(others)} in it); expected a store or an empty "
        "folder; move them away, or choose a different --out"
    )


def _files(path: Root) -> set[str]:
    return {name for name in files_in(path) if name.split("/")[0] != _OF_THE_DISK}
