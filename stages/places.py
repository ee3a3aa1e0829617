"""Places of stores: data/logits, or the folder or bucket that `places.logits` names, behind a pointer file.

A store of a large dump has 100,000 files, and DVC takes up to a millisecond for each, at every command.
With `places.logits` DVC tracks one small file instead, the pointer:

    data/logits/main.json      {"manifest": SHA-256 of manifest.json, "place": "/big/logits/main.zarr"}
    /big/logits/main.zarr      the store, which DVC never reads

The manifest holds the digest of every file, so the pointer vouches for the whole store. A reader refuses a
store that is gone, or is not the pointer's. A folder on another machine may have a different name.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import ConfigError, IncompleteStoreError, MismatchError, bounded
from pipeline.core.files import parse_object, write_json
from pipeline.core.hashing import bytes_digest
from pipeline.places.folder import Root, at
from pipeline.places.location import root_of
from pipeline.store.layout import MANIFEST, ZARR_JSON
from stages import paths
from stages.params import Params


def place_of(params: Params, dump: str) -> Root:
    """Return the folder or place of a dump's store, which may not exist yet."""
    place = params.places.logits
    return paths.store(dump) if place is None else root_of(place) / paths.store(dump).name


def write_pointer(params: Params, dump: str) -> None:
    """Write the pointer to a complete store, if stores lie in a place of their own."""
    if params.places.logits is None:
        return
    store = place_of(params, dump)
    manifest = at(store).get(MANIFEST)
    if manifest is None:
        raise IncompleteStoreError(f"{store}: has no {MANIFEST}; run: pipeline cache-logits {dump}")
    write_json(paths.pointer(dump), {"manifest": bytes_digest(manifest), "place": str(store)})


def made_stores(params: Params, teacher: str) -> list[tuple[str, Path]]:
    """Return the dumps of a teacher whose stores exist in a local folder, finished or not, with them."""
    of_teacher = [name for name, dump in params.dumps.items() if dump.teacher == teacher]
    found = [(name, place) for name in of_teacher if isinstance(place := place_of(params, name), Path)]
    return [(name, store) for name, store in found if (store / ZARR_JSON).exists()]


def find_store(params: Params, dump: str) -> Root:
    """Return the folder or place of a dump's store for reading; see the module.

    Raises:
        ConfigError: the store lies in a place that params.yaml does not name.
        IncompleteStoreError: the pointer or the store is missing.
        MismatchError: the store has changed since the pointer was written.
    """
    pointer, store = paths.pointer(dump), place_of(params, dump)
    again = f"pipeline cache-logits {dump}"
    if params.places.logits is None:
        if pointer.exists() and not paths.store(dump).exists():
            raise ConfigError(
                f"{pointer}: points to {bounded(_read(pointer, again)['place'])}, but places.logits is not "
                "set; expected the folder of the store; set it"
            )
        return store
    if not pointer.exists():
        raise IncompleteStoreError(
            f"{pointer}: is missing; expected the pointer to the store of dump {dump!r}; run: {again}"
        )
    _require_same(pointer, store, again)
    return store


def find_store_to_follow(params: Params, dump: str) -> Root:
    """Return the folder or place of a dump's store, which may be unfinished, or not exist yet.

    A pointer is written after the store is complete; if there is one, see `find_store`.
    """
    return find_store(params, dump) if paths.pointer(dump).exists() else place_of(params, dump)


def _require_same(pointer: Path, store: Root, again: str) -> None:
    expected, manifest = _read(pointer, again)["manifest"], at(store).get(MANIFEST)
    anew = f"dump it again with: rm {pointer} && {again}"
    if manifest is None:
        raise IncompleteStoreError(
            f"{store}: has no {MANIFEST}, but {pointer} points to a complete store; restore it, set "
            f"places.logits to its folder, or {anew}"
        )
    found = bytes_digest(manifest)
    if found != expected:
        raise MismatchError(
            f"{store}: has changed since {pointer} was written ({MANIFEST} is {found[:12]}, expected "
            f"{bounded(expected)[:12]}); restore the store, or accept it with: {again}"
        )


def _read(pointer: Path, again: str) -> dict[str, str]:
    """Return the values of a pointer.

    Raises:
        MismatchError: it is no pointer.
    """
    try:
        found = parse_object(pointer.read_bytes())
        if not all(isinstance(found[name], str) for name in ("manifest", "place")):
            raise ValueError("manifest and place are no texts")
    except (OSError, ValueError, KeyError) as error:
        raise MismatchError(
            f"{pointer}: is not a pointer to a store ({bounded(error)}); expected manifest and place; "
            f"write it again with: {again}"
        ) from None
    return found
