"""The forms of a store's JSON files and frames: types, ranges and sizes, checked before use.

A store may come from anybody. This module checks each value alone. The owners of the values check that
these are consistent: `layout.py`, `header.py`, `records.py`, `manifest.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.codecs.base import ARRAY_NAME, MOST_ARRAYS, MOST_AXES, MOST_LEVEL, Dtype
from pipeline.core.errors import has_unseen, quoted
from pipeline.core.text import PATTERN

MOST_CLASSES = 1 << 24
MOST_ROWS = 1 << 36
MOST_VIEWS = 1 << 20
# The keys of a block are decompressed at once; the default block has at most 2^24 rows.
MOST_SHARD_ROWS = 1 << 25
_MOST_CHECKSUM_CHARACTERS = 1 << 13
_MOST_DIVERGENCES = 8
_MOST_CHUNK_BYTES = 1 << 40

Size = Annotated[int, Field(ge=1, le=_MOST_CHUNK_BYTES)]
Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]
Text = Annotated[str, Field(max_length=255)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ArrayName = Annotated[str, Field(pattern=ARRAY_NAME)]
MemberName = Annotated[str, Field(pattern=rf"^{PATTERN}\.zarr$")]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0)]
FigureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
# Samples times views.
Pairs = Annotated[int, Field(ge=0, le=1 << 56)]
Histogram = dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,5}$")], Pairs]
Extent = Annotated[tuple[Count, Count], Field(strict=False)]
FileEntry = Annotated[tuple[Size, Digest], Field(strict=False)]
BySplit = dict[Literal["train", "validation", "test"], Share | None]
_MAGIC = 0xFD2FB528
_MOST_HEADER_BYTES = 18
_CHECKSUM_BYTES = 4
_RLE = 1
# In a shard's index: offset and length of each chunk, then a CRC-32C.
_ENTRY_BYTES, _INDEX_CHECKSUM_BYTES = 16, 4
_NO_CHUNK = np.uint64(2**64 - 1)


class _Form(BaseModel):
    """Values with JSON's types: no text is accepted as a number, no number as a truth value."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OpenForm(_Form):
    """The same, with unknown keys ignored: a later version may have added them."""

    model_config = ConfigDict(extra="ignore")


class ArrayForm(_Form):
    """Dtype, shape and compression of one array of a codec."""

    dtype: Dtype
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_CLASSES)]], Field(max_length=MOST_AXES)]
    column_major: bool = False
    level: Annotated[int, Field(ge=1, le=MOST_LEVEL)] = 1


class SectionForm(_Form):
    """A split's rows and views."""

    extents: Annotated[list[Extent], Field(min_length=1)]
    views: Annotated[int, Field(ge=1, le=MOST_VIEWS)]


class MeasuresForm(_Form):
    """Names of a codec's costs, and the link of the outputs, of anything but a softmax."""

    divergences: Annotated[list[FigureName], Field(min_length=1, max_length=_MOST_DIVERGENCES)]
    agreement: FigureName
    link: Literal["softmax", "sigmoid", "identity"]
    scales: Annotated[list[Scale], Field(max_length=MOST_CLASSES)] = []


class LayoutForm(_Form):
    """Arrays, sections and shards of a store."""

    codec: Text
    arrays: Annotated[dict[ArrayName, ArrayForm], Field(min_length=1, max_length=MOST_ARRAYS)]
    n_classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    shard_rows: Annotated[int, Field(ge=1, le=MOST_SHARD_ROWS)]
    sections: dict[Literal["train", "validation", "test"], SectionForm]
    measures: MeasuresForm | None = None
    keeps_labels: bool = False


class ArchitectureForm(OpenForm):
    """The name of a teacher's network; no network is built from a store."""

    name: Text


class TeacherForm(OpenForm):
    """The teacher of a store's logits. Its name may be any text, and is no path."""

    name: Annotated[Text, Field(min_length=1)]
    precision: Literal["fp32", "bf16"]
    architecture: ArchitectureForm
    preprocessing: dict[str, Any]
    classes: list[str]


class FingerprintForm(_Form):
    """Digests of everything that determines a store's content."""

    dataset: Text
    teacher: Text
    views: Text
    codec: Text


class CodecSpecForm(_Form):
    """The requested codec."""

    name: Text
    max_kl: float | None = None
    max_error: float | None = None


class HeaderForm(OpenForm):
    """A store's planned content and its origin."""

    layout: LayoutForm
    fingerprint: FingerprintForm
    teacher: TeacherForm
    views: dict[str, Any]
    codec_spec: CodecSpecForm
    batch_size: Annotated[int, Field(ge=1, le=MOST_ROWS)]
    versions: Annotated[dict[Text, Text], Field(max_length=64)]
    labels: Digest | None = None


class FidelityForm(_Form):
    """A codec's cost, with keys sorted by `codecs.rule.sort_keys`; the layout defines the measures."""

    samples: Pairs
    divergences: Annotated[dict[FigureName, Amount], Field(min_length=1, max_length=_MOST_DIVERGENCES)]
    agreement: Annotated[dict[FigureName, Pairs], Field(min_length=1, max_length=1)]
    histograms: Annotated[dict[FigureName, Histogram], Field(min_length=1, max_length=_MOST_DIVERGENCES)]


class RenderChecksumsForm(_Form):
    """Checksums and a few values of rendered samples, in base64."""

    crcs: Annotated[str, Field(max_length=_MOST_CHECKSUM_CHARACTERS)]
    pixels: Annotated[str, Field(max_length=_MOST_CHECKSUM_CHARACTERS)]
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"] = "uint8"


class RecordForm(_Form):
    """The record of one shard."""

    rows: Annotated[int, Field(ge=1, le=MOST_SHARD_ROWS)]
    files: dict[ArrayName, FileEntry]
    fidelity: dict[str, Any]
    labelled: Count
    correct: Count | None = None
    witness: RenderChecksumsForm


class CatalogueForm(_Form):
    """The first line of a catalogue: names and sizes of its arrays."""

    first: Text
    shards: Annotated[int, Field(ge=1, le=1 << 16)]
    made: Digest
    arrays: Annotated[list[ArrayName], Field(min_length=1, max_length=MOST_ARRAYS)]
    divergences: Annotated[list[FigureName], Field(min_length=1, max_length=_MOST_DIVERGENCES)]
    agreement: FigureName
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"]
    width: Annotated[int, Field(ge=1, le=1 << 13)]
    checked: Count
    bins: Count


class TotalsForm(_Form):
    """Sums over the shards of a section."""

    bytes: Annotated[int, Field(ge=1, le=1 << 60)]
    rows: Annotated[int, Field(ge=1, le=1 << 56)]
    labelled: Annotated[int, Field(ge=0, le=1 << 56)]
    correct: Annotated[int, Field(ge=0, le=1 << 56)] | None = None
    fidelity: dict[str, Any]


class Top1Form(_Form):
    """A teacher's accuracy by section, before and after the codec."""

    direct: BySplit
    cached: BySplit


class ManifestForm(OpenForm):
    """A manifest's content besides the header."""

    catalogues: dict[Text, Digest]
    totals: dict[Literal["train", "validation", "test"], TotalsForm]
    metadata: dict[str, Digest]
    teacher_top1: Top1Form


class ManifestOfRecordsForm(OpenForm):
    """The same of schema 3; records are checked one by one."""

    shards: dict[str, Any]
    metadata: dict[str, Digest]
    teacher_top1: Top1Form


class WrittenByForm(_Form):
    """Versions of the programs that wrote a store."""

    versions: Annotated[dict[Text, Text], Field(max_length=16)]


class EnsembleForm(OpenForm):
    """Members of an ensemble, folders beside it with names of dumps, and their manifests' digests."""

    members: dict[MemberName, Digest]
    average: Literal["probabilities", "logits"]
    weights: list[float]
    teacher_top1: Share | None
    labels: Digest | None = None


class HeadForm(_Form):
    """The last layer of a re-headed store; its tensors are in a file of their own."""

    digest: Digest
    classes: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1)]
    unit: bool
    of_outputs: bool
    source: Text
    file: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    penalty: Amount | None


class EstimateForm(_Form):
    """How the fidelity of a re-headed store was found; see `dump/reencode.py`."""

    rows: Count
    scale: Amount


class ReheadForm(OpenForm):
    """The store behind a re-headed one, a folder beside it, its head, and the fidelity with this head."""

    of: Annotated[dict[MemberName, Digest], Field(min_length=1, max_length=1)]
    head: HeadForm
    task: Annotated[Text, Field(min_length=1)]
    measures: MeasuresForm
    fidelity: dict[str, Any]
    estimate: EstimateForm
    codec_spec: CodecSpecForm
    teacher_top1: Share | None
    labels: Digest | None = None


def require_plain(*texts: str) -> None:
    """Refuse texts with control characters, which a terminal would obey.

    Raises:
        ValueError: a text has control characters.
    """
    for text in texts:
        if has_unseen(text):
            raise ValueError(f"{quoted(text)} has control characters")


# Unpacked sizes of Zstandard frames and zarr shards, read from their headers before any allocation.
#
# Both formats declare the size of their content. This code compares it with the layout's size; zarr
# unpacks. Sources: RFC 8878, sections 3.1.1 and 3.1.2; zarr's sharding codec 1.0.
#
# e.g. the frame of b"hello", stored raw: magic 28 B5 2F FD (little-endian), then
#     24          descriptor: 0x20 single segment (no window byte), 0x04 checksum, size in 1 byte
#     05          content size
#     29 00 00    block header 41 = 1 (last) + 2 * 0 (kind: raw) + 8 * 5 (bytes), then the 5 bytes
#     4 bytes     checksum


def most_frame_bytes(content_bytes: int) -> int:
    """Return an upper bound of a frame's size: incompressible content is stored raw, plus headers."""
    return content_bytes + (content_bytes >> 8) + 512


def most_shard_bytes(n_chunks: int, chunk_bytes: int) -> int:
    """Return an upper bound of the size of a shard of so many chunks."""
    return n_chunks * (most_frame_bytes(chunk_bytes) + _ENTRY_BYTES) + _INDEX_CHECKSUM_BYTES


def require_frame(content: bytes | memoryview, content_bytes: int) -> None:
    """Refuse content that is not exactly one frame with a declared size of `content_bytes`.

    Raises:
        ValueError: it is no frame, declares no or a different size, or more bytes follow.
    """
    told, place, checksum = _frame_header(content)
    if told != content_bytes:
        unpacked = "an unknown number of" if told is None else f"{told:,}"
        raise ValueError(f"a chunk unpacks to {unpacked} bytes, expected {content_bytes:,}")
    end = _end_of_blocks(content, place) + (_CHECKSUM_BYTES if checksum else 0)
    if end != len(content):
        raise ValueError("a chunk is not one whole Zstandard frame")


def require_shard(content: bytes, n_chunks: int, chunk_bytes: int) -> None:
    """Refuse a shard whose index or chunks declare other sizes than its array has.

    Args:
        content: the shard's file, with its index at the end.
        n_chunks: number of chunks per shard.
        chunk_bytes: size of each unpacked chunk.

    Raises:
        ValueError: says what differs.
    """
    index_bytes = n_chunks * _ENTRY_BYTES + _INDEX_CHECKSUM_BYTES
    if len(content) < index_bytes:
        raise ValueError(f"a shard has {len(content):,} bytes, too few for its index of {index_bytes:,}")
    # (n_chunks, 2) of offset and length; both are all ones for a missing chunk.
    entries = np.frombuffer(content, "<u8", 2 * n_chunks, len(content) - index_bytes).reshape(-1, 2)
    for offset, length in entries[(entries != _NO_CHUNK).any(1)].tolist():
        if offset + length > len(content) - index_bytes:
            raise ValueError("a shard's index points outside the shard")
        require_frame(memoryview(content)[offset : offset + length], chunk_bytes)


def _frame_header(content: bytes | memoryview) -> tuple[int | None, int, bool]:
    """Return a frame's declared content size, its first block's place, and whether it has a checksum."""
    head = bytes(content[:_MOST_HEADER_BYTES])
    if len(head) < 6 or int.from_bytes(head[:4], "little") != _MAGIC:
        raise ValueError("a chunk is not a Zstandard frame")
    descriptor = head[4]
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    place = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    size = (int(single), 2, 4, 8)[descriptor >> 6]
    # RFC 8878, 3.1.1.1.4: a size of two bytes is stored minus 256.
    told = int.from_bytes(head[place : place + size], "little") + (256 if size == 2 else 0)
    return (told if size else None), place + size, checksum


def _end_of_blocks(content: bytes | memoryview, place: int) -> int:
    """Return the end of the blocks that begin at `place`."""
    last = False
    while not last:
        header = bytes(content[place : place + 3])
        if len(header) < 3:
            raise ValueError("a chunk ends inside its Zstandard frame")
        word = int.from_bytes(header, "little")
        last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
        # A run-length block is one byte, whatever its unpacked size.
        place += 3 + (1 if kind == _RLE else size)
    return place
