"""Stores without shards of their own: a manifest that names other stores beside it, and their digests.

    NAME.zarr/manifest.json    what is referred to, with the digest of each manifest, and its own digest

`ensemble.py` averages several stores, `rehead.py` gives one store another last layer. A reader of either is
refused as soon as a store behind it was written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.core.errors import CorruptStoreError, MismatchError, StoreError, quoted
from pipeline.core.files import parse_object
from pipeline.core.forms import require_form
from pipeline.core.hashing import spec_digest
from pipeline.places.location import Address, Location
from pipeline.places.place import Place
from pipeline.store.arrays import reason
from pipeline.store.commands import dump_command, restoring
from pipeline.store.layout import MANIFEST, OF_RECORDS, SCHEMAS, ZARR_JSON
from pipeline.store.reader import LogitStore

Kind = Literal["logits", "ensemble", "rehead"]
# The key of a manifest that tells its kind, and the noun for messages.
_KEYS: Mapping[str, Kind] = {"members": "ensemble", "head": "rehead"}
NOUNS: Mapping[Kind, str] = {
    "logits": "a logit store",
    "ensemble": "an ensemble",
    "rehead": "a re-headed store",
}
# These manifests keep the form of schema 3. Development versions wrote 4 for the same form.
_WRITTEN, _READ = OF_RECORDS, SCHEMAS


def kind_of(place: Address, **options: Any) -> Kind:
    """Return the kind of a store; a damaged or missing one counts as logits, and opening it explains."""
    location = Location(place, **options)
    if location.exists(ZARR_JSON) or not location.exists(MANIFEST):
        return "logits"
    try:
        content = parse_object(location.read(MANIFEST))
    except (ValueError, CorruptStoreError):
        return "logits"
    return next((kind for key, kind in _KEYS.items() if key in content), "logits")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a manifest with its own digest."""
    whole = {"schema": _WRITTEN, **content}
    return {**whole, "digest": spec_digest(whole)}


def read_reference(location: Location, form: type[BaseModel], kind: Kind) -> dict[str, Any]:
    """Read a manifest that `sealed` made.

    Args:
        location: of the store.
        form: of its content.
        kind: for messages.

    Raises:
        StoreError: there is none.
        CorruptStoreError: it is no such manifest, or changed since it was written.
    """
    origin, noun = f"{location}/{MANIFEST}", NOUNS[kind].partition(" ")[2]
    if not location.exists(MANIFEST):
        raise StoreError(f"{location}: no such {noun}; create it with: {dump_command(location)}")
    try:
        content = parse_object(location.read(MANIFEST))
        digest = content.pop("digest")
        schema = content.get("schema")
        if type(schema) is not int or schema not in _READ:
            known = " and ".join(map(str, _READ))
            raise ValueError(f"schema {quoted(schema)}, but this program reads {known}")
        changed = spec_digest(content) != digest
        require_form(form, content)
    except (ValueError, KeyError, RecursionError) as error:
        raise CorruptStoreError(
            f"{origin}: not {NOUNS[kind]}'s manifest ({reason(error)}); {restoring(location)}"
        ) from None
    if changed:
        raise CorruptStoreError(
            f"{origin}: changed since it was written (digest differs); {restoring(location)}"
        )
    return content


def open_referred(
    place: Address, digests: Mapping[str, str], kind: Kind, *, allow_drift: bool, **options: Any
) -> dict[str, LogitStore]:
    """Open the stores beside a place, in the order of the names.

    Args:
        place: of the store that refers to them.
        digests: name of each -> digest of its manifest.
        kind: of the store that refers to them, for messages.
        allow_drift: see `LogitStore.open`.
        options: of the URL's file system.

    Raises:
        IncompleteStoreError: a store is missing or unfinished.
        MismatchError: a store was rewritten, or has grown, since.
    """
    opened = {
        name: LogitStore.open(beside(place, name), allow_drift=allow_drift, **options) for name in digests
    }
    for name, store in opened.items():
        if store.manifest.digest() != digests[name]:
            location, noun = Location(place, **options), NOUNS[kind].partition(" ")[2]
            raise MismatchError(
                f"{location}: refers to an older {name}, which has been rewritten since; rebuild the "
                f"{noun} with: {dump_command(location)}"
            )
    return opened


def beside(place: Address, name: str) -> Address:
    """Return the place of a store in the same folder."""
    if isinstance(place, Place):
        return next(place.parents()).below(name)
    if isinstance(place, str) and "://" in place:
        return f"{place.rstrip('/').rpartition('/')[0]}/{name}"
    return Path(str(place)).absolute().parent / name
