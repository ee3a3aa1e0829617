"""Commands that errors of stores name."""

from __future__ import annotations

from pathlib import PurePosixPath
from shlex import quote

from pipeline.places.addresses import is_address
from pipeline.places.objects import is_object_address


def dump_command(place: object, options: str = "") -> str:
    """Return the command that makes a store, or finishes it.

    A store of the project is in data/logits, or wherever `places.logits` says, and has its dump's name. One
    that was begun with --out may have any name.

    Args:
        place: of the store.
        options: that the command needs, e.g. "--by-view".

    >>> dump_command("data/logits/main.zarr", "--by-view")
    'pipeline cache-logits main --by-view'
    >>> dump_command("s3://bucket/main.zarr")
    'pipeline cache-logits main (or, if begun with --out: pipeline cache-logits DUMP --out s3://bucket/main.zarr)'
    """
    name, begin, more = str(place), "pipeline cache-logits", options and f" {options}"
    path = PurePosixPath(name)
    usual = f"{begin} {path.stem}{more}"
    # No dump is written to other addresses, e.g. https://.
    is_out = is_object_address(name) if is_address(name) else path.parent.parts[-2:] != ("data", "logits")
    return usual + (f" (or, if begun with --out: {begin} DUMP --out {quote(name)}{more})" if is_out else "")
