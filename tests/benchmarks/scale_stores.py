"""Synthetic stores of `scale.py`: random keys, records as real dumps have them, shard files of eight bytes.

Nothing here or in `scale_steps.py` is imported but by names that older versions of the package have, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASSES, SIZE = 10, 8
CHECKED = 64  # rendered samples of a shard


def header_of(samples: int, rows: int, shards: int) -> Any:
    """Return the header of a store with about so many shards."""
    from pipeline.codecs import codec_fingerprint, find_codec
    from pipeline.codecs.spec import CodecSpec
    from pipeline.modalities.images.spec import ViewSpec
    from pipeline.store.header import Fingerprint, Header
    from pipeline.store.layout import Layout, Section
    from pipeline.store.records import versions

    codec, blocks = find_codec("affine8", CLASSES), -(-samples // rows)
    train = Section(name="train", extents=((0, samples),), n_views=max(1, shards // blocks))
    return Header(
        layout=Layout(
            codec=codec.name,
            arrays=codec.arrays,
            n_classes=CLASSES,
            shard_rows=rows,
            sections={"train": train},
            **({"keeps_labels": True} if has_labels() else {}),
        ),
        **({"labels": "0" * 64} if has_labels() else {}),
        fingerprint=Fingerprint(dataset="", teacher="", views="", codec=codec_fingerprint(codec)),
        teacher={
            "name": "none",
            "precision": "fp32",
            "architecture": {"name": "none"},
            "preprocessing": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 1.0},
            "classes": [str(number) for number in range(CLASSES)],
        },
        views=ViewSpec(seed=0).canonical(),
        codec_spec=CodecSpec(name=codec.name),
        batch_size=256,
        versions=versions("none"),
    )


def has_labels() -> bool:
    """Whether this code keeps labels beside contents."""
    from pipeline.store.layout import Layout

    return "keeps_labels" in Layout.__dataclass_fields__


def _index_of(samples: int) -> Any:
    """Return random keys and digests of so many samples, and labels in the order of classes."""
    import numpy as np

    from pipeline.store.index import SampleIndex

    generator = np.random.default_rng(0)
    keys, digests = (generator.integers(0, 2**64, samples, np.uint64) for _ in range(2))
    labels = {"labels": np.sort(generator.integers(0, CLASSES, samples))} if has_labels() else {}
    return SampleIndex(keys, digests, **labels)


def make(path: Path, samples: int, rows: int, shards: int) -> None:
    """Make an unfinished store with records of all its shards, or of the first `shards`."""
    from pipeline.store.frame import build_frame

    header = header_of(samples, rows, shards)
    build_frame(path, header, index={"train": _index_of(samples)}, state={})
    add_records(path, header, list(header.layout.shards()))


def add_records(path: Path, header: Any, shards: list[Any]) -> None:
    """Write tiny files and synthetic records of some shards, without waiting for the disk."""
    import numpy as np

    layout, folders = header.layout, set()
    write = _record_writer(path, header, np.random.default_rng(1))
    for number, shard in enumerate(shards):
        content = number.to_bytes(8, "little")
        for array in layout.arrays:
            file = f"{path}/{layout.shard_file(shard, array)}"
            folder = file.rpartition("/")[0]
            if folder not in folders:
                os.makedirs(folder, exist_ok=True)
                folders.add(folder)
            with open(file, "wb") as out:
                out.write(content)
        write(shard)


def _record_writer(path: Path, header: Any, generator: Any) -> Callable[[Any], None]:
    """Return a function that writes the record of a shard, with random digests of its files."""
    from pipeline.store.writer import StoreWriter

    layout, names = header.layout, list(header.layout.arrays)
    records = StoreWriter(path, header)._records

    def write(shard: Any) -> None:
        files = {name: (8, generator.bytes(32).hex()) for name in names}
        records.write(shard, replace(record_of(layout.n_rows(shard), names), files=files))

    if find_spec("pipeline.store.catalogue") is None:
        return write
    # The same as `Records.write`, in a fifth of the time: records differ in their digests alone.
    folder = path / "records"
    folder.mkdir(exist_ok=True)

    def put(shard: Any) -> None:
        from pipeline.store.layout import Span

        content = with_random(alike(header, Span.of(shard)), generator).to_bytes()
        with open(f"{folder}/{shard}.record", "wb") as out:
            out.write(f"{sha256(content).hexdigest()}\n".encode() + content)

    return put


@lru_cache
def fidelity_of(rows: int) -> Any:
    """Return costs as those of real dumps: lognormal, about 120 bins of each histogram."""
    import numpy as np

    from pipeline.codecs.fidelity import Fidelity
    from pipeline.codecs.rule import SOFTMAX

    costs = np.exp(np.random.default_rng(rows).normal(-9, 1.2, (rows, 2)))
    return Fidelity.of(SOFTMAX, costs, np.ones(rows, np.bool_))


def record_of(rows: int, arrays: list[str]) -> Any:
    """Return the record of a shard, with files of eight bytes."""
    import numpy as np

    from pipeline.store import records

    # Older code says witness.
    name = "checksums" if hasattr(records, "RenderChecksums") else "witness"
    kind = getattr(records, "RenderChecksums", None) or records.Witness
    rendered = np.zeros((min(rows, CHECKED), 2, 2, 3), np.uint8)
    return records.ShardRecord(
        rows=rows,
        files=dict.fromkeys(arrays, (8, "0" * 64)),
        fidelity=fidelity_of(rows),
        labelled=rows,
        correct=rows // 2,
        **{name: kind.of(rendered)},
    )


_MADE: dict[tuple[int, ...], Any] = {}


def alike(header: Any, span: Any) -> Any:
    """Return the catalogue of a span; those of equal rows differ in the name of the span alone."""
    from pipeline.store.catalogue import Catalogue

    rows = tuple(header.layout.n_rows(shard) for shard in span.shards())
    if rows not in _MADE:
        records = [record_of(count, list(header.layout.arrays)) for count in rows]
        _MADE[rows] = Catalogue.of(span, records, header.origin)
    found = _MADE[rows]
    return replace(found, span=span, head=replace(found.head, first=str(span)))


def with_random(catalogue: Any, generator: Any) -> Any:
    """Return a catalogue with random digests of files and checksums of samples."""
    import numpy as np

    shapes = {name: catalogue.columns[name].shape for name in ("digests", "crcs")}
    columns = {
        "digests": generator.integers(0, 2**8, shapes["digests"], np.uint8),
        "crcs": generator.integers(0, 2**32, shapes["crcs"], np.uint32),
    }
    return replace(catalogue, columns={**catalogue.columns, **columns})


def finish(path: Path, samples: int, rows: int, shards: int) -> None:
    """Make a complete store of this code without its shards' files."""
    import numpy as np

    from pipeline.core.hashing import file_digest
    from pipeline.places.location import Location
    from pipeline.store.frame import build_frame, frame_files
    from pipeline.store.ledger import Records
    from pipeline.store.manifest import Manifest, sum_up
    from pipeline.store.shards import Catalogues

    header, generator = header_of(samples, rows, shards), np.random.default_rng(0)
    build_frame(path, header, index={"train": _index_of(samples)}, state={})
    layout, records, named = header.layout, Records(path), {}
    for span in layout.spans():
        named[str(span)] = records.put(with_random(alike(header, span), generator))
    shards_of_all = Catalogues(Location(path), header, named)
    metadata = {name: file_digest(path / name) for name in frame_files(path)}
    Manifest(
        header=header,
        shards=shards_of_all,
        totals=sum_up(layout, shards_of_all.read),
        metadata=metadata,
        teacher_top1={"direct": {}, "cached": {}},
    ).write(path)


def small_dump(folder: Path, shards: int) -> tuple[Any, Any, Any]:
    """Return context, teacher and spec of a dump with shards of one row of a hundred images."""
    import torch

    from pipeline.codecs.spec import CodecSpec
    from pipeline.dump.spec import DumpSpec
    from pipeline.evaluation.context import RunContext
    from pipeline.modalities.images.preprocessing import Preprocessing
    from pipeline.modalities.images.spec import ViewSpec
    from pipeline.models.architecture import Architecture, build
    from pipeline.models.checkpoint import ModelCard
    from pipeline.models.teacher import Teacher
    from pipeline.tasks.table import find_task

    data = small_data(folder / "prepared")
    torch.manual_seed(0)
    architecture = Architecture(name="wrn_16_2", num_classes=3, channels=1, stem_stride=1)
    preprocessing = Preprocessing(size=SIZE, **data.statistics)
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=data.classes)
    teacher = Teacher(name="t", network=build(architecture).eval(), card=card, precision="fp32")
    views = shards // len(data.train) + 1
    spec = DumpSpec(
        views=ViewSpec(seed=9),
        view_count=views,
        codec=CodecSpec(name="affine8"),
        batch_size=8,
        shard_rows=1,
        allow_poor_teacher=True,
    )
    return (
        RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1),
        teacher,
        spec,
    )


def small_data(folder: Path) -> Any:
    """Return a hundred grey training images and four test images, prepared once."""
    import numpy as np

    from pipeline.modalities.images.form import ImageSource
    from pipeline.modalities.prepared import PreparedData
    from pipeline.samples.samples import Sample
    from tests.pipeline.preparing import asking, prepare

    if not folder.exists():
        images = np.random.default_rng(0).integers(0, 256, (104, SIZE, SIZE, 1)).astype(np.uint8)
        samples = [Sample(str(row), row % 3, partial(images.__getitem__, row)) for row in range(104)]
        source = ImageSource(classes=("a", "b", "c"), channels=1, train=samples[:100], test=samples[100:])
        prepare(
            source,
            folder,
            asking(origin="test", validation=0.0),
            state=folder.with_name("state"),
            workers=1,
            progress=lambda some, _: iter(some),
        )
    return PreparedData.open(folder)
