"""The place of a store: what a folder must be for one to be made in it, tidying it, and taking it away."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.places.local import require_own_folders
from pipeline.store.arrays import RESTORE
from pipeline.store.ensemble import is_ensemble
from pipeline.store.faults import files_in
from pipeline.store.frame import frame_files
from pipeline.store.growth import settle
from pipeline.store.layout import GATHERED, MANIFEST, ZARR_JSON
from pipeline.store.leftovers import (
    is_passing,
    is_shard_file,
    named,
    remove_empty_folders,
    sweep_temporaries,
)
from pipeline.store.records import Records

# What a new file system has in its root.
_OF_THE_DISK = "lost+found"


def behind_links(path: Path) -> Path:
    """Return where a store is whose folder is a link, also to a folder that is not there yet."""
    return path.resolve() if path.is_symlink() else path


def require_store_or_nothing(path: Path) -> None:
    """Refuse a place where a store can neither be nor be made.

    Raises:
        CorruptStoreError: it has a manifest and no header.
        StoreError: there is something else, or a store is around it.
    """
    _require_folder_of_its_own(path)
    if (path / ZARR_JSON).exists():
        return
    problem = _no_place(path)
    # Another process may have made a store in between.
    if problem and not (path / ZARR_JSON).exists():
        raise problem


def require_ensemble_or_nothing(path: Path) -> None:
    """Refuse a place where an ensemble can neither be nor be made.

    Raises:
        StoreError: there is something else, or a store is around it.
    """
    _require_folder_of_its_own(path)
    if (path / ZARR_JSON).exists():
        raise StoreError(
            f"{path}: holds a store of logits; expected an ensemble or nothing; choose another name, or "
            f"remove it with: rm -r {path}"
        )
    others = sorted(name for name in _files(path) - {MANIFEST} if not is_passing(name))
    if others and not is_ensemble(path):
        raise StoreError(
            f"{path}: holds other files ({named(others)} there); expected an ensemble or nothing; choose "
            "another --out"
        )


def partial_folder(path: Path) -> Path:
    """Return where a store is made that then appears at once."""
    return path.with_name(f".{path.name}.partial")


def clean(path: Path, *, alone: bool) -> None:
    """Finish what a killed writer had published, and remove what it left; to be called at the gate.

    Args:
        path: the store's folder, or where it is to be.
        alone: whether no other process writes it.

    Raises:
        CorruptStoreError: something in it is neither a file nor a folder of its own.
    """
    if path.is_dir():
        require_own_folders(path)
    shutil.rmtree(partial_folder(path), ignore_errors=True)
    if (path / MANIFEST).exists():
        settle(path)
        # Left over when a run was killed between the manifest and their removal.
        Records(path).clear()
    if alone:
        sweep_temporaries(path)


def clear_unfinished_frame(path: Path) -> None:
    """Remove what a kill left of a store that was being made in a folder that was there."""
    for name in frame_files(path):
        (path / name).unlink()


def discard(path: Path) -> None:
    """Remove a store, but nothing that is not its own; its folder too, if it is not a disk's."""
    files = files_in(path)
    own = {name for name in files if is_shard_file(name)} | (frame_files(path) - {ZARR_JSON})
    Records(path).clear()
    # Its header last: until then it is a store.
    for name in (*sorted(own), *sorted(files & {GATHERED, ZARR_JSON})):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):
        remove_empty_folders(path)


def _require_folder_of_its_own(path: Path) -> None:
    if path.is_file():
        raise StoreError(f"{path}: is a file; expected a folder for the store; choose another --out")
    if path.is_dir():
        require_own_folders(path)
    for around in path.absolute().parents:
        if (around / ZARR_JSON).exists() or is_ensemble(around):
            raise StoreError(
                f"{path}: is inside another store, {around}; expected a folder of its own; choose another "
                "--out"
            )


def _no_place(path: Path) -> StoreError | None:
    """Return why no store can be made in a folder that is none."""
    if is_ensemble(path):
        return StoreError(f"{path}: holds an ensemble; expected a store or nothing; choose another name")
    if (path / MANIFEST).exists():
        return CorruptStoreError(f"{path}: {ZARR_JSON} is missing; {RESTORE}")
    others = sorted(name for name in _files(path) - frame_files(path) if not is_passing(name))
    if not others:
        return None
    return StoreError(
        f"{path}: holds files but no {ZARR_JSON} ({named(others)} there); expected a store or nothing; "
        "move them away or choose another --out"
    )


def _files(path: Path) -> set[str]:
    return {name for name in files_in(path) if name.split("/")[0] != _OF_THE_DISK}
