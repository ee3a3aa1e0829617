"""Records: the facts about each finished shard, and checksums of its rendered samples.

Files of records are in `ledger.py`, those of a complete store in `catalogue.py`.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Measures, sort_keys
from pipeline.core.errors import quoted
from pipeline.core.forms import require_form
from pipeline.core.package import NAME, installed_version, program_version
from pipeline.store.arrays import logits_array
from pipeline.store.layout import Layout, ShardId
from pipeline.store.wire import FidelityForm, RecordForm

CHECKSUMS_A_SHARD = 64
# Number of values kept of each rendered sample (of an image, pixels), which show how far off it is.
PLACES = 4


class Recorded(Protocol):
    """A finished shard, whether its record is at hand or is read when asked for."""

    @property
    def rows(self) -> int:
        """Number of samples."""

    @property
    def bytes(self) -> int:
        """Size of the shard's files."""

    @property
    def checksums(self) -> RenderChecksums:
        """The checksums of rendered samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """The facts about one finished shard.

    Args:
        rows: number of samples.
        files: array -> (bytes, SHA-256 in hex) of its file.
        fidelity: cost of the codec in this shard.
        labelled, correct: labelled samples, and those that the teacher's own outputs answer correctly; no
            number, and no key in the file, if the task counts no correct answers.
        checksums: of the rendered samples at `checksum_rows`.
    """

    rows: int
    files: Mapping[str, tuple[int, str]]
    fidelity: Fidelity
    labelled: int
    correct: int | None
    checksums: RenderChecksums

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
            **({} if self.correct is None else {"correct": self.correct}),
            "witness": self.checksums.to_dict(),  # the key of the first schema with checksums
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ShardRecord:
        """Return the record that `to_dict` described.

        Raises:
            ValueError: a value is out of range, or contradicts another.
        """
        require_form(RecordForm, value)
        require_form(FidelityForm, sort_keys(value["fidelity"]), "fidelity")
        files = {array: (size, digest) for array, (size, digest) in value["files"].items()}
        fidelity = Fidelity.from_dict(value["fidelity"])
        checksums = RenderChecksums.from_dict(value["witness"])
        told: dict[str, Any] = {key: value.get(key) for key in ("rows", "labelled", "correct")}
        record = cls(**told, files=files, fidelity=fidelity, checksums=checksums)
        if not (record.correct or 0) <= record.labelled <= record.rows or fidelity.samples > record.rows:
            raise ValueError(f"more labelled, correct or measured samples than its {record.rows} rows")
        if len(checksums.crcs) != len(checksum_rows(record.rows)):
            raise ValueError(f"{len(checksums.crcs)} render checksums for {record.rows} rows")
        return record

    def require_shard(self, shard: ShardId, layout: Layout) -> None:
        """Refuse the record of a shard that the layout lacks, or has with other rows or arrays.

        Raises:
            ValueError: says what differs.
        """
        if not layout.holds(shard):
            raise ValueError(f"{shard} is not a shard of the layout")
        if self.rows != layout.n_rows(shard):
            raise ValueError(f"{shard} has {self.rows} rows, but the layout has {layout.n_rows(shard)}")
        if set(self.files) != set(layout.arrays):
            raise ValueError(
                f"{shard} has files for {quoted(sorted(self.files))}, but the layout has different arrays"
            )
        require_measures(str(shard), self.fidelity.measures, layout.measures)
        section = layout.sections[shard.section]
        for array, (size, _) in self.files.items():
            most_bytes = logits_array(layout, section, array).most_file_bytes
            if size > most_bytes:
                raise ValueError(f"{shard}, {array} has {size:,} bytes, expected at most {most_bytes:,}")


@dataclass(frozen=True, slots=True)
class RenderChecksums:
    """Checksums of W rendered samples of a shard, and a few of their values.

    A reader renders the same samples again. Different bytes mean that a decoder, a resize kernel or a
    device behaves differently here, and that cached logits no longer belong to the samples.

    Args:
        crcs: CRC-32 of each rendered sample's bytes; of an image, its pixels (S, S, channels).
        values: (W, n), a few values per sample, spread over it; of an image, pixels with all channels.
    """

    crcs: tuple[int, ...]
    values: NDArray[Any]

    @classmethod
    def of(cls, rendered: Sequence[NDArray[Any]] | NDArray[Any]) -> RenderChecksums:
        """Return the checksums of W integer samples of any length; the last of several axes is whole."""
        crcs = tuple(zlib.crc32(np.ascontiguousarray(sample).data) for sample in rendered)
        return cls(crcs, np.stack([_spread(sample) for sample in rendered]))

    @property
    def channels(self) -> int:
        """Values per kept place; of images, their channels."""
        return int(self.values.shape[1]) // PLACES

    def __getitem__(self, rows: NDArray[Any]) -> RenderChecksums:
        return RenderChecksums(tuple(np.array(self.crcs, np.int64)[rows].tolist()), self.values[rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the checksums as plain values: base64 of 32-bit words and of values, low bytes first."""
        words = np.array(self.crcs, "<u4").tobytes()
        little = self.values.astype(self.values.dtype.newbyteorder("<"))
        kind = {} if self.values.dtype == np.uint8 else {"dtype": self.values.dtype.name}
        return {
            "crcs": base64.b64encode(words).decode(),
            "pixels": base64.b64encode(little.tobytes()).decode(),
            **kind,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> RenderChecksums:
        """Return the checksums that `to_dict` described.

        Raises:
            ValueError: it has no samples, or not the same few values of each.
        """
        dtype = np.dtype(value.get("dtype", "uint8")).newbyteorder("<")
        crcs, values = (
            np.frombuffer(base64.b64decode(value[name]), kind)
            for name, kind in (("crcs", "<u4"), ("pixels", dtype))
        )
        if not len(crcs) or not len(values) or len(values) % (PLACES * len(crcs)):
            raise ValueError(f"render checksums have {len(values)} values for {len(crcs)} samples")
        return cls(tuple(crcs.tolist()), values.reshape(len(crcs), -1))


def require_measures(shard: str, found: Measures, expected: Measures) -> None:
    """Refuse figures that are none of the layout's.

    Raises:
        ValueError: names the shard and its figures.
    """
    if not found.are_those_of(expected):
        raise ValueError(f"{shard} has different fidelity measures than the layout: {quoted(found)}")


def _spread(sample: NDArray[Any]) -> NDArray[Any]:
    """Return the values (PLACES * unit,) at the middles of PLACES equal parts of a sample."""
    # E.g. pixels 8, 24, 40 and 56 of 64; unit is the number of channels. Of 5 values: 0, 1, 3 and 4.
    flat = sample.reshape(-1, sample.shape[-1] if sample.ndim > 1 else 1)
    places = (2 * np.arange(PLACES) + 1) * len(flat) // (2 * PLACES)
    return flat[places].ravel()


def checksum_rows(count: int) -> NDArray[np.int64]:
    """Return the rows (W,) of a shard that get render checksums, ascending and evenly spread."""
    return np.linspace(0, count - 1, min(count, CHECKSUMS_A_SHARD)).astype(np.int64)


def versions(decoder: str) -> dict[str, str]:
    """Return the versions of the decoding and rendering libraries, for a store's header."""
    return {"decoder": decoder, **{name: installed_version(name) for name in ("torch", "torchvision")}}


def written_by() -> dict[str, str]:
    """Return the versions of this program and of the libraries that write its bytes."""
    return {NAME: program_version(), **{name: installed_version(name) for name in ("zarr", "numcodecs")}}
