"""Writing a store: whole shards, each with a record, until the manifest makes it complete.

A writer is made for a fingerprint. It creates the store, or goes on with one of the same fingerprint,
and refuses any other. A shard counts as done when its record is there; what has no record is swept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.codecs.fidelity import Fidelity
from pipeline.data.packed import PackedImages
from pipeline.digests import canonical_json, file_digest
from pipeline.errors import MismatchError, StoreError
from pipeline.files import naming, read_json, sync_file, sync_folder, write_json
from pipeline.store.layout import INDEX_ARRAYS, MANIFEST, RECORDS, SCHEMA, ZARR_JSON, Layout, ShardId
from pipeline.store.manifest import Fingerprint, Manifest, ShardRecord, read_records


def compressor() -> ZstdCodec:
    """Return the compressor of every chunk: level 1 is the smallest and fastest here."""
    return ZstdCodec(level=1, checksum=True)


class StoreWriter:
    """An open store that takes shards. Hold its `writer_lock` while one is in use.

    Args:
        path: the store's folder.
        layout: what the store shall be; an existing store keeps its own `shard_rows`.
        fingerprint: what its content is made from.
        teacher, views: kept in the manifest for people and for replay.
        splits: the samples of each section of the layout.

    Raises:
        MismatchError: there is a store of another fingerprint, or of more views.
        StoreError: the folder holds something that is no store.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        *,
        fingerprint: Fingerprint,
        teacher: dict[str, Any],
        views: dict[str, Any],
        splits: Mapping[str, PackedImages],
    ) -> None:
        self.path = path
        self.layout = layout
        self._fingerprint, self._teacher, self._views = fingerprint, teacher, views
        if (path / ZARR_JSON).exists():
            self._adopt()
        elif path.exists() and any(path.iterdir()):
            raise StoreError(
                f"{path}: holds files but no {ZARR_JSON}; expected a store or nothing; remove it or "
                "choose another --out"
            )
        self._create(splits)
        if self.complete:
            # Left over when a run was killed between the manifest and their removal.
            shutil.rmtree(path / RECORDS, ignore_errors=True)
        self._records = self._read_records()
        self._sweep()
        # A shard of zeros is a file like any other.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays = {
                (section, array): zarr.open_array(path / section / array, mode="r+")
                for section in self.layout.sections
                for array in self.layout.arrays()
            }

    @property
    def complete(self) -> bool:
        """Whether the store has its manifest."""
        return (self.path / MANIFEST).exists()

    def missing(self) -> list[ShardId]:
        """Return the shards that are not done, in the order in which they are made."""
        return [shard for shard in self.layout.shards() if shard not in self._records]

    def write(
        self,
        shard: ShardId,
        arrays: Mapping[str, NDArray[Any]],
        *,
        fidelity: Fidelity,
        labelled: int,
        correct: int,
    ) -> None:
        """Write one whole shard, durably, then its record.

        Args:
            shard: one that is missing.
            arrays: the codec's arrays of its rows.
            fidelity: what encoding them cost.
            labelled, correct: labelled samples, and those the teacher's own logits classify right.
        """
        rows = self.layout.rows(shard)
        files: dict[str, tuple[int, str]] = {}
        for name, values in arrays.items():
            file = self.path / self.layout.shard_file(shard, name)
            with naming(file):
                self._arrays[shard.section, name][shard.view, rows] = values
            sync_file(file)
            sync_folder(file.parent)
            files[name] = file.stat().st_size, file_digest(file)
        record = ShardRecord(
            rows=self.layout.n_rows(shard),
            files=files,
            fidelity=fidelity,
            labelled=labelled,
            correct=correct,
        )
        write_json(self._record_file(shard), record.to_dict())
        self._records[shard] = record

    def manifest(self, cached_top1: Mapping[str, float | None]) -> Manifest:
        """Return the manifest of a store that misses nothing.

        Args:
            cached_top1: the teacher's accuracy by section, read back from this store.
        """
        shards = {shard: self._records[shard] for shard in self.layout.shards()}
        shard_files = {
            str(self.layout.shard_file(shard, array)) for shard in shards for array in self.layout.arrays()
        }
        metadata = {
            name: file_digest(self.path / name)
            for name in sorted(self._files())
            if name not in shard_files and name != MANIFEST and not name.startswith(f"{RECORDS}/")
        }
        return Manifest(
            layout=self.layout,
            fingerprint=self._fingerprint,
            teacher=self._teacher,
            views=self._views,
            shards=shards,
            metadata=metadata,
            teacher_top1={
                "direct": {name: self.direct_top1(name) for name in cached_top1},
                "cached": dict(cached_top1),
            },
        )

    def complete_with(self, manifest: Manifest) -> None:
        """Write the manifest, which completes the store, and drop the records."""
        manifest.write(self.path)
        shutil.rmtree(self.path / RECORDS, ignore_errors=True)

    def discard_without_views(self) -> None:
        """Remove the store if no training view was written yet."""
        if not any(shard.section == "train" for shard in self._records):
            shutil.rmtree(self.path)

    def direct_top1(self, *sections: str) -> float | None:
        """Return the teacher's accuracy on sections together, from its logits before encoding."""
        records = [record for shard, record in self._records.items() if shard.section in sections]
        labelled = sum(record.labelled for record in records)
        return sum(record.correct for record in records) / labelled if labelled else None

    def _adopt(self) -> None:
        """Go on with a store that is there, if it is of the same making."""
        attributes = read_json(self.path / ZARR_JSON)["attributes"]
        if attributes.get("schema") != SCHEMA:
            raise StoreError(
                f"{self.path}: a store of schema {attributes.get('schema')}; this program writes {SCHEMA}; "
                "use another dump name or remove the store"
            )
        found, mine = attributes["fingerprint"], self._fingerprint.to_dict()
        differing = [part for part in mine if found[part] != mine[part]]
        if differing:
            part = differing[0]
            raise MismatchError(
                f"{self.path}: made from another {' and '.join(differing)} ({part} {found[part][:12]}, now "
                f"{mine[part][:12]}); a dump is never overwritten: use a new dump name, or remove it with: "
                f"rm -r {self.path}"
            )
        existing = Layout.from_dict(attributes["layout"])
        had, wanted = existing.sections["train"].n_views, self.layout.sections["train"].n_views
        if wanted < had:
            raise MismatchError(
                f"{self.path}: has {had} views, views.count is {wanted}; a dump never loses views: raise "
                f"views.count to {had}, use a new dump name, or remove it with: rm -r {self.path}"
            )
        self.layout = replace(existing, sections=self.layout.sections)
        if wanted > had and self.complete:
            self._reopen()

    def _reopen(self) -> None:
        """Turn a manifest back into records, so that more views can be added."""
        for shard, record in Manifest.read(self.path).shards.items():
            write_json(self._record_file(shard), record.to_dict())
        (self.path / MANIFEST).unlink()
        sync_folder(self.path)

    def _create(self, splits: Mapping[str, PackedImages]) -> None:
        """Make what is not there yet of groups, arrays and indices."""
        attributes = {
            "schema": SCHEMA,
            "layout": self.layout.to_dict(),
            "fingerprint": self._fingerprint.to_dict(),
            "teacher": self._teacher,
            "views": self._views,
        }
        if self.complete:
            return
        root = self.path / ZARR_JSON
        if not root.exists() or canonical_json(read_json(root)["attributes"]) != canonical_json(attributes):
            # The root comes first: what a killed run leaves is a store that the next one goes on with.
            write_json(root, {"attributes": attributes, "zarr_format": 3, "node_type": "group"})
        for name in self.layout.sections:
            self._create_section(name, splits[name])

    def _create_section(self, name: str, images: PackedImages) -> None:
        section, folder = self.layout.sections[name], self.path / name
        group = zarr.open_group(folder, mode="a", zarr_format=3)
        for index in INDEX_ARRAYS:
            if index not in group or not self._index_matches(group, index, images):
                values = getattr(images, index)
                group.create_array(index, data=values, compressors=[compressor()], overwrite=True)
        for array, spec in self.layout.arrays().items():
            shape = (section.n_views, section.n_samples, *spec.shape)
            if array not in group:
                group.create_array(
                    array,
                    shape=shape,
                    dtype=spec.dtype,
                    chunks=(1, self.layout.chunk_rows, *spec.shape),
                    shards=(1, self.layout.shard_rows, *spec.shape),
                    compressors=[compressor()],
                )
            elif (existing := zarr.open_array(folder / array, mode="r+")).shape != shape:
                existing.resize(shape)

    def _index_matches(self, group: zarr.Group, index: str, images: PackedImages) -> bool:
        try:
            return np.array_equal(np.asarray(group[index][:]), getattr(images, index))  # type: ignore[index]
        except (ValueError, RuntimeError, FileNotFoundError):
            return False

    def _read_records(self) -> dict[ShardId, ShardRecord]:
        if self.complete:
            return dict(Manifest.read(self.path).shards)
        found = read_records(self.path)
        return {shard: record for shard, record in found.items() if self._is_there(shard, record)}

    def _is_there(self, shard: ShardId, record: ShardRecord) -> bool:
        files = [self.path / self.layout.shard_file(shard, array) for array in record.files]
        sizes = [size for size, _ in record.files.values()]
        return all(f.exists() and f.stat().st_size == s for f, s in zip(files, sizes, strict=True))

    def _sweep(self) -> None:
        """Remove shards without a record and half-written files: a truncated shard cannot be rewritten."""
        done = {
            str(self.layout.shard_file(shard, array))
            for shard in self._records
            for array in self.layout.arrays()
        }
        records = {f"{RECORDS}/{shard}.json" for shard in self._records}
        for name in self._files():
            parts = Path(name).parts
            is_shard = len(parts) > 2 and parts[1] in self.layout.arrays() and parts[2] == "c"
            is_record = parts[0] == RECORDS
            is_partial = parts[-1].startswith(".") or parts[-1].endswith(".partial")
            if (is_shard and name not in done) or (is_record and name not in records) or is_partial:
                (self.path / name).unlink()

    def _files(self) -> list[str]:
        return [str(f.relative_to(self.path)) for f in self.path.rglob("*") if f.is_file()]

    def _record_file(self, shard: ShardId) -> Path:
        return self.path / RECORDS / f"{shard}.json"
