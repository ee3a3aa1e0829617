"""Records: what is known of each finished shard, a file each until the manifest gathers them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codecs.fidelity import Fidelity
from pipeline.digests import spec_digest
from pipeline.files import read_json, write_json
from pipeline.store.layout import RECORDS, ShardId


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What is known of one finished shard.

    Args:
        rows: samples in it.
        files: array -> (bytes, SHA-256 in hex) of its file.
        fidelity: what the codec cost here.
        labelled, correct: labelled samples, and those whose label the teacher's own logits put first.
    """

    rows: int
    files: Mapping[str, tuple[int, str]]
    fidelity: Fidelity
    labelled: int
    correct: int

    @property
    def bytes(self) -> int:
        """Size of the shard's files."""
        return sum(size for size, _ in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "rows": self.rows,
            "files": {array: [size, digest] for array, (size, digest) in self.files.items()},
            "fidelity": self.fidelity.to_dict(),
            "labelled": self.labelled,
            "correct": self.correct,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ShardRecord:
        """Return the record that `to_dict` described."""
        files = {array: (size, digest) for array, (size, digest) in value["files"].items()}
        fidelity = Fidelity.from_dict(value["fidelity"])
        return cls(**{**value, "files": files, "fidelity": fidelity})


class Records:
    """The records of an unfinished store.

    Args:
        store: the store's folder.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / RECORDS

    def read(self) -> dict[ShardId, ShardRecord]:
        """Return those that are there now; other processes may be adding some.

        One that is not what was written counts as not there.
        """
        found = {}
        for file in sorted(self._folder.glob("*.json")):
            try:
                content = read_json(file)
                if content.pop("digest") == spec_digest(content):
                    found[ShardId.parse(file.stem)] = ShardRecord.from_dict(content)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def write(self, shard: ShardId, record: ShardRecord) -> None:
        """Write one, durably."""
        content = record.to_dict()
        write_json(self._folder / f"{shard}.json", {**content, "digest": spec_digest(content)})

    def remove(self, shard: ShardId) -> None:
        """Remove one, if it is there."""
        (self._folder / f"{shard}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self._folder, ignore_errors=True)
