"""Frozen, validated dataclasses of `dumps` and `ensembles` in `params.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.codecs import trust_codec
from pipeline.codecs.blend import Blend
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError
from pipeline.dump.spec import DumpSpec
from pipeline.modalities.preprocessing import Views
from pipeline.store.layout import CHUNK_ROWS
from pipeline.training.settings import Precision
from pipeline.views.pairing import require_whole_groups
from stages.own_types import AsItIs


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpViews:
    """The views of a dump.

    Args:
        count: number of views V, 1 to 100,000; epoch e of a student shows view e mod V.
        spec: the augmentation; its keys are written beside `count`.
    """

    count: int
    spec: Annotated[Views, AsItIs()]

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 100_000:
            raise ConfigError(f"count is {self.count}; expected 1 to 100,000 views")

    @property
    def mixes(self) -> bool:
        """Whether the views mix samples."""
        return self.spec.mixes


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpParams:
    """A dump: one teacher, its views, and the codec of the stored logits.

    Args:
        teacher: name of an entry of `teachers`.
        views: number and augmentation of the views of each training sample; see the views below.
        codec: storage format of the outputs: fp16, affine8, affine6, affine4, topk-K (e.g. topk-50; only
            classes), features, digits, auto, which takes the smallest of these within the budget; pq-M and
            rvq-M, vectors in M bytes (e.g. pq-16; no classes); or your own `module:NAME` or
            `module:NAME-K`; own code runs when a dump is made or its logits are read, not when params.yaml
            is read.
        max_kl: error budget of classes in nats: mean KL(teacher || stored) at temperatures 1 and 4,
            measured on a pilot before the dump; None means 1e-3 for auto and features, no limit for the
            others.
        max_error: error budget of other tasks, in place of `max_kl`: of multilabel the mean KL in nats,
            summed over the tags; of embedding the mean squared error over the squared length, and the mean
            of 1 - cosine; of scores the mean squared error over the variance. None means 1e-3 for auto,
            features and digits, no limit for the others.
        precision: precision of the teacher's forward pass: fp32, or bf16 autocast.
        batch_size: samples per forward pass.
        shard_rows: samples per shard; None chooses by the size of the dataset.
        allow_poor_teacher: accept a teacher that is hardly better than always naming the largest class.
        compile: compile the teacher's network with torch.compile; takes about a minute and pays off in
            long dumps.

    """

    teacher: str
    views: DumpViews
    codec: str = "affine8"
    max_kl: float | None = None
    max_error: float | None = None
    precision: Precision = "fp32"
    batch_size: int = 256
    shard_rows: int | None = None
    allow_poor_teacher: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.views.mixes:
            require_whole_groups(self.batch_size)
            if self.shard_rows is not None:
                require_whole_groups(self.shard_rows, "shard_rows")
        if self.shard_rows is not None and self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows}; expected at least 1")
        if self.shard_rows is not None and self.shard_rows > CHUNK_ROWS and self.shard_rows % CHUNK_ROWS:
            raise ConfigError(
                f"shard_rows is {self.shard_rows}; expected at most {CHUNK_ROWS} or a multiple of it"
            )
        self.codec_spec()
        trust_codec(self.codec)

    def dump_spec(self) -> DumpSpec:
        """Return the specification of the dump."""
        return DumpSpec(
            views=self.views.spec,
            view_count=self.views.count,
            codec=self.codec_spec(),
            batch_size=self.batch_size,
            shard_rows=self.shard_rows,
            allow_poor_teacher=self.allow_poor_teacher,
            compile=self.compile,
        )

    def codec_spec(self) -> CodecSpec:
        """Return the codec's name and error budget."""
        return CodecSpec(name=self.codec, max_kl=self.max_kl, max_error=self.max_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleParams:
    """Several dumps of the same views, read as one.

    Args:
        of: names of two or more dumps of the same views.
        average: average of the probabilities (at temperature 1) or of the logits.
        weights: one weight per dump, each more than 0; None for equal weights.

    """

    of: tuple[str, ...]
    average: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.of) < 2 or len(set(self.of)) < len(self.of):
            raise ConfigError(f"of is {list(self.of)}; expected two or more different dumps")
        if self.weights is not None and len(self.weights) != len(self.of):
            raise ConfigError(
                f"weights are {list(self.weights)}; expected {len(self.of)}, one per dump in `of`"
            )
        self.blend()

    def blend(self) -> Blend:
        """Return the rule for averaging soft labels."""
        return Blend(average=self.average, weights=self.weights or (1.0,) * len(self.of))
