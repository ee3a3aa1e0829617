"""What to dump."""

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
    """What to dump.

    Args:
        views: which views of the training images.
        view_count: V, how many.
        codec: how logits are kept.
        batch_size: images a forward pass.
        shard_rows: samples a shard; None suits it to the dataset.
        allow_poor_teacher: accept a teacher that knows little more than the largest class.
        compile: let torch.compile make kernels of the teacher's network. No part of the fingerprint: it
            changes logits in their last bits, as another number of threads does, and a dump that was begun
            without it may go on with it.
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
        """Return the spec of a store that is there; its teacher was accepted once.

        Args:
            header: the store's.
            origin: the store, for errors.
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
    """Return how many samples each split has that has some.

    Args:
        data: as it is prepared.
        samples: as many training and validation samples together as the data is imagined to have, in its
            own proportion; None for those that it has.
    """
    counts = {name: len(images) for name, images in splits_of(data).items()}
    if samples is not None:
        there = len(data.train) + len(data.validation)
        held = samples * len(data.validation) // there
        counts |= {"train": samples - held, **({"validation": held} if held else {})}
    return counts


def splits_of(data: PreparedData) -> dict[str, Split]:
    """Return the splits that have samples, by name."""
    return {name: getattr(data, name) for name in SPLITS if len(getattr(data, name))}
