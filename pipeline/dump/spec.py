"""Settings of a dump, and the splits that it covers."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codecs.spec import CodecSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import Views
from pipeline.modalities.table import read_views
from pipeline.samples.description import SPLITS
from pipeline.samples.packed import Split
from pipeline.store.header import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpSpec:
    """Settings of a dump.

    Args:
        views: view spec of the training samples.
        view_count: V, number of views per training sample.
        codec: codec of the logits.
        batch_size: samples per forward pass.
        shard_rows: samples per shard; None chooses by the size of the dataset.
        allow_poor_teacher: accept a teacher hardly better than always naming the largest class.
        compile: use torch.compile for the teacher's network. Not part of the fingerprint: like a different
            number of threads, it changes only the last bits of logits. A dump may resume with a different
            value.
    """

    views: Views
    view_count: int
    codec: CodecSpec
    batch_size: int = 256
    shard_rows: int | None = None
    allow_poor_teacher: bool = False
    compile: bool = False

    @classmethod
    def of(cls, header: Header, origin: object) -> DumpSpec:
        """Return the spec of an existing store; its teacher was already accepted.

        Args:
            header: the store's header.
            origin: the store's name in errors.
        """
        return cls(
            views=read_views(header.views, header.teacher, origin),
            view_count=header.layout.sections["train"].n_views,
            codec=header.codec_spec,
            batch_size=header.batch_size,
            shard_rows=header.layout.shard_rows,
            allow_poor_teacher=True,
        )


def counts_of(data: PreparedData, samples: int | None = None) -> dict[str, int]:
    """Return the number of samples of each split that is not empty.

    Args:
        data: the prepared data.
        samples: pretend that training and validation have this many samples together, in the proportion of
            the data; None for the real counts.
    """
    counts = {name: len(images) for name, images in splits_of(data).items()}
    if samples is not None:
        there = len(data.train) + len(data.validation)
        held = samples * len(data.validation) // there
        counts |= {"train": samples - held, **({"validation": held} if held else {})}
    return counts


def splits_of(data: PreparedData) -> dict[str, Split]:
    """Return the splits that are not empty, by name."""
    return {name: getattr(data, name) for name in SPLITS if len(getattr(data, name))}
