"""The README's way to read a store with zarr and numpy alone, run as it stands there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dump.run import cache_logits
from pipeline.store.reader import LogitStore

README = Path(__file__).parents[3] / "pipeline/store/README.md"


def snippet(store: Path) -> str:
    """Return the README's code for a store of this path."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    (code,) = (block for block in blocks if "import numpy as np, zarr" in block)
    assert "pipeline" not in code
    return code.replace("data/logits/main.zarr", str(store))


@pytest.mark.parametrize("codec", ["affine8", "features"])
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
