"""A digest file that stands for a folder of samples, so that DVC watches one file instead of a million.

    data: {source: "folder:photos", watch: photos.watch}

DVC takes up to a millisecond per watched file, at every command. The digest is of names, sizes and times of
change, which takes a hundredth of that. `pipeline prepare` writes it. After adding photographs,
`pipeline prepare --look` writes it again, and `dvc repro` then imports them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.files import read_json, write_json
from pipeline.places.objects import is_object_address
from pipeline.samples.files import suffix_of
from pipeline.samples.objects import find_objects
from pipeline.samples.parts import MAGIC, find_parts
from stages.data_params import DataParams

SUFFIX = ".watch"
# Options with patterns of further files.
_FURTHER = ("test_files", "validation_files", "unlabelled_files")


def is_kept(data: DataParams) -> bool:
    """Whether `data.watch` names a digest file."""
    return data.watch.endswith(SUFFIX)


def look(data: DataParams) -> dict[str, Any]:
    """Return number and digest of the source's files.

    Raises:
        ConfigError: the source is no file or folder.
        DataError: it is missing.
    """
    kind, _, path = data.source.partition(":")
    if not path:
        raise ConfigError(
            f"data.watch is {data.watch!r}, a digest of the source's files, but data.source {kind!r} has "
            "none; expected a file or folder; watch something else"
        )
    patterns = {name: getattr(data.options, name, None) for name in _FURTHER}
    state, count = hashlib.sha256(), 0
    for line in _lines_of(path, patterns):
        state.update(line)
        count += 1
    return {"files": count, "digest": state.hexdigest()}


def keep(data: DataParams, seen: dict[str, Any]) -> bool:
    """Write the digest file if it differs; return whether it did."""
    path = Path(data.watch)
    try:
        if read_json(path) == seen:
            return False
    except (OSError, ValueError):
        pass  # missing or damaged: written anew
    write_json(path, seen)
    return True


def _lines_of(path: str, further: Mapping[str, str | None]) -> Iterator[bytes]:
    """Yield a line for each file of a source: a file or folder, or patterns, in a bucket as well."""
    if is_object_address(path):
        objects = find_objects(path, ".tar", further).files
        named = {str(file): file for some in objects.values() for file in some}
        yield from (
            os.fsencode(f"{name}\0{named[name].size}\0{named[name].tag}\n") for name in sorted(named)
        )
        return
    root = Path(path)
    is_pattern = not root.exists() and MAGIC.search(path) is not None
    if not is_pattern and not root.exists():
        raise DataError(f"{root}: no such file or folder; expected the source; correct data.source")
    if not is_pattern:
        yield from _lines(root)
    patterns = [pattern for pattern in (path if is_pattern else None, *further.values()) if pattern]
    found = {file for pattern in patterns for file in find_parts(pattern, suffix_of(pattern), {}).paths}
    yield from (_line(str(file), file.stat()) for file in sorted(found))


def _lines(root: Path) -> Iterator[bytes]:
    """Yield name, size and time of change of each file, in the order of the names."""
    if root.is_file():
        yield _line(root.name, root.stat())
        return
    known: set[tuple[int, int]] = set()
    # Sorted folder by folder: only the names of one folder are in memory.
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if _is_new(os.path.join(folder, name), known))
        for name in sorted(names):
            path = os.path.join(folder, name)
            # A dangling link has no target to look at; it counts as itself.
            yield _line(
                os.path.relpath(path, root), os.stat(path) if os.path.exists(path) else os.lstat(path)
            )


def _is_new(folder: str, known: set[tuple[int, int]]) -> bool:
    """Whether a folder is not among those seen: a link may lead back to one of its parents."""
    found = os.stat(folder)
    identity = found.st_dev, found.st_ino
    is_new = identity not in known
    known.add(identity)
    return is_new


def _line(name: str, found: os.stat_result) -> bytes:
    return os.fsencode(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n")
