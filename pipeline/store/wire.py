"""The forms of a store's JSON files and frames: types, ranges and sizes, before anything is made of them.

A store may come from anybody. Owns what each value may be by itself; how values must fit together is
checked by those who own them (`layout.py`, `header.py`, `records.py`, `manifest.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import has_unseen, quoted
from pipeline.core.text import PATTERN

MOST_CLASSES = 1 << 24
MOST_ROWS = 1 << 36
MOST_VIEWS = 1 << 20
# A block's keys are decompressed at once, and the default is at most 2^24 rows.
MOST_SHARD_ROWS = 1 << 25
_MOST_WITNESS_CHARACTERS = 1 << 13
_MOST_DIVERGENCES = 8
_MOST_CHUNK_BYTES = 1 << 40

Size = Annotated[int, Field(ge=1, le=_MOST_CHUNK_BYTES)]
Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]
Text = Annotated[str, Field(max_length=255)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ArrayName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
MemberName = Annotated[str, Field(pattern=rf"^{PATTERN}\.zarr$")]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
FigureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Histogram = dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,5}$")], Count]
Extent = Annotated[tuple[Count, Count], Field(strict=False)]
FileEntry = Annotated[tuple[Size, Digest], Field(strict=False)]
BySplit = dict[Literal["train", "validation", "test"], Share | None]
_MAGIC = 0xFD2FB528
_MOST_HEADER_BYTES = 18
_CHECKSUM_BYTES = 4
_RLE = 1
_ENTRY_BYTES, _INDEX_CHECKSUM_BYTES = (
    16,
    4,
)  # of a shard's index: offset and length of each chunk, a CRC-32C
_NO_CHUNK = np.uint64(2**64 - 1)


class _Form(BaseModel):
    """Values whose types are JSON's own: no text is taken for a number, no number for a truth."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OpenForm(_Form):
    """The same, with further keys that a later version may have added."""

    model_config = ConfigDict(extra="ignore")


class ArrayForm(_Form):
    """One array of a codec."""

    dtype: Literal["uint8", "uint16", "int16", "int32", "float16", "float32"]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_CLASSES)]], Field(max_length=3)]
    column_major: bool = False
    level: Annotated[int, Field(ge=1, le=22)] = 1


class SectionForm(_Form):
    """A split's rows and views."""

    extents: Annotated[list[Extent], Field(min_length=1)]
    views: Annotated[int, Field(ge=1, le=MOST_VIEWS)]


class LayoutForm(_Form):
    """How a store is cut."""

    codec: Text
    arrays: Annotated[dict[ArrayName, ArrayForm], Field(min_length=1, max_length=16)]
    n_classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    shard_rows: Annotated[int, Field(ge=1, le=MOST_SHARD_ROWS)]
    sections: dict[Literal["train", "validation", "test"], SectionForm]


class ArchitectureForm(OpenForm):
    """The name of a teacher's network; nothing is built of what a store says."""

    name: Text


class TeacherForm(OpenForm):
    """Whose logits a store holds. A name may be any text, and is no path."""

    name: Annotated[Text, Field(min_length=1)]
    precision: Literal["fp32", "bf16"]
    architecture: ArchitectureForm
    preprocessing: dict[str, Any]
    classes: list[str]


class FingerprintForm(_Form):
    """Digests of what decides a store's content."""

    dataset: Text
    teacher: Text
    views: Text
    codec: Text


class CodecSpecForm(_Form):
    """What was asked of a codec."""

    name: Text
    max_kl: float | None = None


class HeaderForm(OpenForm):
    """What a store is to hold."""

    layout: LayoutForm
    fingerprint: FingerprintForm
    teacher: TeacherForm
    views: dict[str, Any]
    codec_spec: CodecSpecForm
    batch_size: Annotated[int, Field(ge=1, le=MOST_ROWS)]
    versions: Annotated[dict[Text, Text], Field(max_length=64)]


class FidelityForm(_Form):
    """What a codec cost, its keys sorted by `codecs.rule.sort_keys`; which measures, the layout says."""

    samples: Count
    divergences: Annotated[dict[FigureName, Amount], Field(min_length=1, max_length=_MOST_DIVERGENCES)]
    agreement: Annotated[dict[FigureName, Count], Field(min_length=1, max_length=1)]
    histograms: Annotated[dict[FigureName, Histogram], Field(min_length=1, max_length=_MOST_DIVERGENCES)]


class WitnessForm(_Form):
    """What some samples looked like, in base64."""

    crcs: Annotated[str, Field(max_length=_MOST_WITNESS_CHARACTERS)]
    pixels: Annotated[str, Field(max_length=_MOST_WITNESS_CHARACTERS)]
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"] = "uint8"


class RecordForm(_Form):
    """What is known of one shard."""

    rows: Annotated[int, Field(ge=1, le=MOST_SHARD_ROWS)]
    files: dict[ArrayName, FileEntry]
    fidelity: dict[str, Any]
    labelled: Count
    correct: Count
    witness: WitnessForm


class Top1Form(_Form):
    """A teacher's accuracy by section, before and after the codec."""

    direct: BySplit
    cached: BySplit


class ManifestForm(OpenForm):
    """What a manifest says beyond the header; records are checked one by one."""

    shards: dict[str, Any]
    metadata: dict[str, Digest]
    teacher_top1: Top1Form


class WrittenByForm(_Form):
    """Versions of the programs that wrote a store."""

    versions: Annotated[dict[Text, Text], Field(max_length=16)]


class EnsembleForm(OpenForm):
    """Members of an ensemble, folders beside it called as dumps are, and their manifests' digests."""

    members: dict[MemberName, Digest]
    average: Literal["probabilities", "logits"]
    weights: list[float]
    teacher_top1: Share | None


def require_plain(*texts: str) -> None:
    """Refuse texts that a terminal would obey.

    Raises:
        ValueError: one has control characters.
    """
    for text in texts:
        if has_unseen(text):
            raise ValueError(f"{quoted(text)} has control characters")


# Zstandard frames and zarr shards by their headers: how much they unpack to, told before it is allocated.
#
# Both formats say themselves how large their content is. Here it is compared with the size that the
# layout has for it; unpacking is zarr's. Sources: RFC 8878, sections 3.1.1 and 3.1.2; zarr's sharding
# codec 1.0.


def most_frame_bytes(content_bytes: int) -> int:
    """Return the size that no frame of so many bytes exceeds: what does not shrink is kept as it is."""
    return content_bytes + (content_bytes >> 8) + 512


def most_shard_bytes(n_chunks: int, chunk_bytes: int) -> int:
    """Return the size that no shard of so many chunks exceeds."""
    return n_chunks * (most_frame_bytes(chunk_bytes) + _ENTRY_BYTES) + _INDEX_CHECKSUM_BYTES


def require_frame(content: bytes | memoryview, content_bytes: int) -> None:
    """Refuse all but one whole frame that says it unpacks to so many bytes.

    Raises:
        ValueError: it is none, does not say so, says another size, or something follows it.
    """
    told, place, checksum = _frame_header(content)
    if told != content_bytes:
        unpacked = "an unknown number of" if told is None else f"{told:,}"
        raise ValueError(f"a chunk unpacks to {unpacked} bytes, expected {content_bytes:,}")
    end = _end_of_blocks(content, place) + (_CHECKSUM_BYTES if checksum else 0)
    if end != len(content):
        raise ValueError("a chunk is not one whole Zstandard frame")


def require_shard(content: bytes, n_chunks: int, chunk_bytes: int) -> None:
    """Refuse a shard whose index or chunks say other sizes than its array has.

    Args:
        content: the shard's file, with its index at the end.
        n_chunks: of each shard.
        chunk_bytes: of each chunk when it is unpacked.

    Raises:
        ValueError: saying what differs.
    """
    index_bytes = n_chunks * _ENTRY_BYTES + _INDEX_CHECKSUM_BYTES
    if len(content) < index_bytes:
        raise ValueError(f"a shard has {len(content):,} bytes, too few for its index of {index_bytes:,}")
    entries = np.frombuffer(content, "<u8", 2 * n_chunks, len(content) - index_bytes).reshape(-1, 2)
    for offset, length in entries[(entries != _NO_CHUNK).any(1)].tolist():
        if offset + length > len(content) - index_bytes:
            raise ValueError("a shard's index points outside of it")
        require_frame(memoryview(content)[offset : offset + length], chunk_bytes)


def _frame_header(content: bytes | memoryview) -> tuple[int | None, int, bool]:
    """Return the size of a frame's content, where its blocks begin, and whether a checksum follows them."""
    head = bytes(content[:_MOST_HEADER_BYTES])
    if len(head) < 6 or int.from_bytes(head[:4], "little") != _MAGIC:
        raise ValueError("a chunk is no Zstandard frame")
    descriptor = head[4]
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    place = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    size = (int(single), 2, 4, 8)[descriptor >> 6]
    told = int.from_bytes(head[place : place + size], "little") + (256 if size == 2 else 0)
    return (told if size else None), place + size, checksum


def _end_of_blocks(content: bytes | memoryview, place: int) -> int:
    """Return where the blocks end that begin at a place."""
    last = False
    while not last:
        header = bytes(content[place : place + 3])
        if len(header) < 3:
            raise ValueError("a chunk ends inside its Zstandard frame")
        word = int.from_bytes(header, "little")
        last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
        place += 3 + (1 if kind == _RLE else size)
    return place
