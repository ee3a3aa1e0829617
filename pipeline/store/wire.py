"""The plain values of a store's JSON files: their types and ranges, before anything is made of them.

A store may come from anybody. Owns what each value may be by itself; how values must fit together is
checked by those who own them (`layout.py`, `header.py`, `records.py`, `manifest.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import has_unseen, quoted
from pipeline.core.text import PATTERN

MOST_CLASSES = 1 << 24
MOST_ROWS = 1 << 36
MOST_VIEWS = 1 << 20
# A block's keys are decompressed at once, and the default is at most 2^24 rows.
MOST_SHARD_ROWS = 1 << 25
MOST_PIXELS = 2048  # a side of a model's input
_MOST_WITNESS_CHARACTERS = 1 << 13
_MOST_CHUNK_BYTES = 1 << 40

Size = Annotated[int, Field(ge=1, le=_MOST_CHUNK_BYTES)]
Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]
Text = Annotated[str, Field(max_length=255)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ArrayName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
MemberName = Annotated[str, Field(pattern=rf"^{PATTERN}\.zarr$")]
Share = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(ge=0)]
Extent = Annotated[tuple[Count, Count], Field(strict=False)]
FileEntry = Annotated[tuple[Size, Digest], Field(strict=False)]
BySplit = dict[Literal["train", "validation", "test"], Share | None]


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


class PreprocessingForm(OpenForm):
    """A teacher's eyes."""

    size: Annotated[int, Field(ge=1, le=MOST_PIXELS)]
    mean: Annotated[list[float], Field(min_length=1, max_length=16)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=16)]
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class ArchitectureForm(OpenForm):
    """The name of a teacher's network; nothing is built of what a store says."""

    name: Text


class TeacherForm(OpenForm):
    """Whose logits a store holds. A name may be any text, and is no path."""

    name: Annotated[Text, Field(min_length=1)]
    precision: Literal["fp32", "bf16"]
    architecture: ArchitectureForm
    preprocessing: PreprocessingForm
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
    """What a codec cost."""

    samples: Count
    kl_t1: Nats
    kl_t4: Nats
    same_top1: Count
    histogram_t1: dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,5}$")], Count]
    histogram_t4: dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,5}$")], Count]


class WitnessForm(_Form):
    """What some samples looked like, in base64."""

    crcs: Annotated[str, Field(max_length=_MOST_WITNESS_CHARACTERS)]
    pixels: Annotated[str, Field(max_length=_MOST_WITNESS_CHARACTERS)]


class RecordForm(_Form):
    """What is known of one shard."""

    rows: Annotated[int, Field(ge=1, le=MOST_SHARD_ROWS)]
    files: dict[ArrayName, FileEntry]
    fidelity: FidelityForm
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


class EnsembleForm(OpenForm):
    """Members of an ensemble, folders beside it called as dumps are, and their manifests' digests."""

    members: dict[MemberName, Digest]
    average: Literal["probabilities", "logits"]
    weights: list[float]
    teacher_top1: Share | None


def require_form(form: type[BaseModel], value: Any) -> None:
    """Refuse a value that has not the types and ranges of a form.

    Raises:
        ValueError: naming the first place that breaks it, and what is there.
    """
    try:
        form.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None


def require_plain(*texts: str) -> None:
    """Refuse texts that a terminal would obey.

    Raises:
        ValueError: one has control characters.
    """
    for text in texts:
        if has_unseen(text):
            raise ValueError(f"{quoted(text)} has control characters")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:40] for part in problem["loc"]) or "the whole"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{quoted(place)[1:-1]} is {quoted(problem['input'], 40)}: {message}"
