"""Leftovers of killed writers in a store's folder, recognised by their names, and their removal.

Only leftovers are ever removed. Any other file in a store's folder is somebody else's: it is reported and
stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.core.files import written_beside
from pipeline.core.progress import note
from pipeline.places.folder import Root, at
from pipeline.store.faults import files_in
from pipeline.store.layout import GATHERED, GROWTH, HEAD, MANIFEST, RECORDS, ZARR_JSON, catalogue_digest

_WRITTEN = re.compile(
    rf"{re.escape(ZARR_JSON)}|{re.escape(MANIFEST)}|{re.escape(HEAD)}|{re.escape(GATHERED)}"
    r"|\w+\.v\d+\.b\d+\.(record|json)"
    r"|[0-9a-f]{64}(\.copy)?|\d+"
)
# zarr's names of files that it is writing.
_PARTIAL = re.compile(r"(zarr|\d+)\.[0-9a-f]+\.partial")
_SHARD_FILE = re.compile(r"(train|validation|test)/\w+/c(/\d+)+")
_NAMED_AT_MOST = 5


def is_passing(name: str) -> bool:
    """Whether a file belongs to unfinished or killed work, not to the finished store."""
    of_work = name.startswith((f"{RECORDS}/", f"{GROWTH}/")) or catalogue_digest(name) is not None
    # The records of schema 3 remain for a moment after an upgrade is published.
    return of_work or name == GATHERED or _is_temporary(name)


def is_shard_file(name: str) -> bool:
    """Whether a file has the name of a shard's file."""
    return _SHARD_FILE.fullmatch(name) is not None


def half_written(path: Root) -> list[str]:
    """Return the names of half-written files, of killed writers or of writers at work."""
    if not isinstance(path, Path):
        return []  # an object is whole
    return [name for name in files_in(path) if _is_temporary(name)]


def sweep_temporaries(path: Root) -> None:
    """Remove half-written files of killed writers; call it while no writer is at work."""
    remove_files(path, half_written(path))


def sweep(path: Root, known: Collection[str]) -> None:
    """Remove leftovers of writers from a store's folder, and report foreign files.

    Args:
        path: the folder.
        known: the names of the files that stay.
    """
    others = sorted(files_in(path) - set(known))
    others = [
        name
        for name in others
        if not name.startswith((f"{RECORDS}/", f"{GROWTH}/")) and catalogue_digest(name) is None
    ]
    left = [name for name in others if _is_temporary(name) or is_shard_file(name)]
    remove_files(path, left)
    if foreign := [name for name in others if name not in left]:
        note(f"{path}: {named(foreign)} not part of the store; left unchanged")


def named(names: Collection[str]) -> str:
    """Return the first names and the number of further ones, with the verb.

    >>> named(["NOTES.md"])
    'NOTES.md is'
    >>> named(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more files are'
    """
    shown, rest = list(names)[:_NAMED_AT_MOST], len(names) - _NAMED_AT_MOST
    more = f" and {rest} more file{'s' if rest > 1 else ''}" if rest > 0 else ""
    return f"{', '.join(shown)}{more} {'is' if len(names) == 1 else 'are'}"


def remove_empty_folders(path: Root) -> None:
    """Remove folders without files, and the folder itself if it is empty."""
    if not isinstance(path, Path):
        return
    folders = sorted((folder for folder in path.rglob("*") if _is_folder(folder)), reverse=True)
    for folder in (*folders, path):
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_temporary(name: str) -> bool:
    last = name.rpartition("/")[2]
    return bool(_PARTIAL.fullmatch(last) or _WRITTEN.fullmatch(written_beside(last) or ""))


def remove_files(path: Root, names: Iterable[str]) -> None:
    """Remove files of a store by name."""
    at(path).delete(names)
