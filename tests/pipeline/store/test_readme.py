"""The way of pipeline/store/README.md to read a store with zarr and numpy alone, run as it stands there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dump.run import cache_logits
from pipeline.store.reader import LogitStore
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
    assert np.allclose(logits, store.view(0).numpy(), atol=1e-4)
    assert names["keys"].tolist() == store.keys.tolist()
