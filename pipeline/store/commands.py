"""Commands that errors of stores name."""

from __future__ import annotations

from pathlib import PurePosixPath
from shlex import quote

from pipeline.places.addresses import hidden_place, is_address
from pipeline.places.objects import is_object_address
from pipeline.store.layout import GROWTH, MANIFEST, ZARR_JSON


def dump_command(place: object, options: str = "") -> str:
    """Return the command that makes a store, or finishes it.

    A store of the project is in data/logits, or wherever `places.logits` says, and has its dump's name. One
    that was begun with --out may have any name.

    Args:
        place: of the store.
        options: that the command needs, e.g. "--by-view".

    >>> dump_command("data/logits/main.zarr", "--by-view")
    'pipeline cache-logits main --by-view'
    >>> dump_command("simplecache::s3://bucket/main.zarr")
    'pipeline cache-logits main'
    >>> dump_command("s3://bucket/main.zarr")
    'pipeline cache-logits main (or, if begun with --out: pipeline cache-logits DUMP --out s3://bucket/main.zarr)'
    """
    name, begin, more = hidden_place(str(place)), "pipeline cache-logits", options and f" {options}"
    path = PurePosixPath(name.partition("?")[0])
    usual = f"{begin} {path.stem}{more}"
    if any(sign in name for sign in ("://", "::", "?", "<")):
        may_be_out = is_object_address(name) and "?" not in name  # no dump is written to other addresses
    else:
        may_be_out = path.parent.parts[-2:] != ("data", "logits")
    return usual + (
        f" (or, if begun with --out: {begin} DUMP --out {quote(name)}{more})" if may_be_out else ""
    )


def restoring(damaged: object) -> str:
    """Return the commands that repair or restore a damaged store.

    Args:
        damaged: the store, its growth, or the root file of one of them.

    >>> restoring("data/logits/main.zarr/zarr.json")
    'repair it with: pipeline verify data/logits/main.zarr --repair (without --repair it tells whether dvc \
checkout can restore it)'
    >>> restoring("s3://bucket/main.zarr")
    'repair it with: pipeline verify s3://bucket/main.zarr --repair'
    """
    name = hidden_place(str(damaged))
    while name.rpartition("/")[2] in (ZARR_JSON, MANIFEST, GROWTH):
        name = name.rpartition("/")[0]
    if is_address(name) and not is_object_address(name):
        return "restore it"
    repair = f"repair it with: pipeline verify {quote(name)} --repair"
    # Not at once: a file may be a link into DVC's cache, which then has the same damage.
    also = "" if is_address(name) else " (without --repair it tells whether dvc checkout can restore it)"
    return f"{repair}{also}"
