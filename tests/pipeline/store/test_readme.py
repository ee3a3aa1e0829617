"""The way of pipeline/store/README.md to read a store with zarr and numpy alone, run as it stands there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.hashing import content_digest
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import splits_of
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.label_forms import label_words
from pipeline.store.reader import LogitStore
from pipeline.tasks.multilabel import MULTILABEL
from tests.documents import ROOT, block_with

DOCUMENT = ROOT / "pipeline/store/README.md"


def snippet(store: Path) -> str:
    """Return the document's code for a store of this path."""
    code = block_with(DOCUMENT, "zarr.open_group")
    assert "pipeline" not in code
    return code.replace("data/logits/main.zarr", str(store))


@pytest.mark.parametrize("codec", ["fp16", "affine8", "affine6", "affine4", "features"])
def test_zarr_alone_reads_a_store_that_grew(context, teacher, make_spec, tmp_path, codec):
    path = tmp_path / "main.zarr"
    train = context.data.train
    small = replace(context, data=replace(context.data, train=train.subset(np.arange(30))))
    for data in (small, context):
        cache_logits(data, teacher, make_spec(codec), path)
    names: dict[str, np.ndarray] = {}
    exec(snippet(path), names)
    store = LogitStore.open(path)
    logits = names["logits"] - names["logits"].max(1, keepdims=True)
    assert "measures" not in names["layout"]
    assert np.allclose(logits, store.view(0).numpy(), atol=1e-4)
    assert names["keys"].tolist() == store.keys.tolist()


ABSOLUTE = ("fp16", "affine8", "affine6", "affine4", "features", "digits", "pq-2", "rvq-2")


@pytest.mark.parametrize("codec", ABSOLUTE)
def test_zarr_alone_reads_absolute_outputs(context, teacher, make_spec, tmp_path, codec):
    path, card = tmp_path / "main.zarr", replace(teacher.card, task=MULTILABEL.name)
    tagged = replace(context, task=MULTILABEL, data=_tagged(context.data))
    small = replace(tagged, data=replace(tagged.data, train=tagged.data.train.subset(np.arange(30))))
    # The store grows; codebooks and tables were fitted once, to the first samples.
    for some in (small, tagged):
        cache_logits(some, replace(teacher, card=card), make_spec(codec), path)
    names: dict[str, np.ndarray] = {}
    exec(snippet(path), names)
    store = LogitStore.open(path)
    assert store.measures == MULTILABEL.measures
    assert np.allclose(names["logits"], store.view(0).numpy(), atol=1e-4)
    assert bool((store.view(0).amax(1) != 0).all())


def _tagged(data: PreparedData) -> PreparedData:
    """The same samples with a tag per class."""
    splits = {}
    for name, split in splits_of(data).items():
        tags = np.eye(len(data.classes), dtype=np.int8)[split.labels]
        words = label_words(tags).tolist()
        digests = [content_digest(split.array(row), word) for row, word in enumerate(words)]
        splits[name] = replace(split, labels=tags, digests=np.array(digests, np.uint64))
    return replace(data, task=MULTILABEL.name, **splits)
