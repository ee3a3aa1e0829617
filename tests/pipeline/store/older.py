"""Stores as versions of schema 3 wrote them: all records in the manifest, and once more in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.core.hashing import file_digest
from pipeline.places.location import Location
from pipeline.store.layout import GATHERED, OF_RECORDS, ZARR_JSON
from pipeline.store.ledger import Records, seal_line
from pipeline.store.manifest import Manifest


def to_schema_3(path: Path) -> None:
    """Turn a complete store into one of schema 3; shards, keys and metadata of arrays stay as they are."""
    manifest = Manifest.read(Location(path))
    order = manifest.layout.shards()
    records = {shard: manifest.shards[shard] for shard in order}
    lines = "".join(seal_line(shard, record) for shard, record in records.items())
    (path / GATHERED).write_text(lines)
    header = replace(manifest.header, schema=OF_RECORDS)
    header.write(path)
    changed = {name: file_digest(path / name) for name in (ZARR_JSON, GATHERED)}
    replace(manifest, header=header, shards=records, metadata={**manifest.metadata, **changed}).write(path)
    Records(path).clear_catalogues()
