"""Stores as versions of schema 3 wrote them: all records in the manifest, and once more in one file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.core.hashing import file_digest
from pipeline.places.location import Location
from pipeline.store.frame import build_frame, read_state
from pipeline.store.index import SampleIndex, Splits, describing, read_index
from pipeline.store.layout import GATHERED, OF_RECORDS, ZARR_JSON
from pipeline.store.ledger import Records, seal_line
from pipeline.store.manifest import Manifest


def without_labels(path: Path, splits: Splits) -> None:
    """Turn a complete store into one whose digests cover labels, as the first ones of schema 4 were."""
    manifest = Manifest.read(Location(path))
    index = {
        name: replace(
            part, digests=splits[name].digests[SampleIndex.of(splits[name]).find(part.keys)], labels=None
        )
        for name, part in read_index(path, manifest.header).items()
    }
    layout = replace(manifest.layout, keeps_labels=False)
    for name in layout.sections:
        shutil.rmtree(path / name / "labels")
    header = describing(manifest.header, layout, index)
    build_frame(path, header, index=index, state=read_state(path, layout))
    metadata = {name: file_digest(path / name) for name in manifest.metadata if "/labels/" not in name}
    replace(manifest, header=header, metadata=metadata).write(path)


def to_schema_3(path: Path, splits: Splits) -> None:
    """Turn a complete store into one of schema 3; shards, keys and metadata of arrays stay as they are."""
    without_labels(path, splits)
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
