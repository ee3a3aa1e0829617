"""Stage one without a teacher: dumps that are there become one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.codecs.blend import Blend
from pipeline.evaluation.metrics import compare
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.store.ensemble import Ensemble, open_members


def write_ensemble(path: Path, names: Sequence[str], blend: Blend, data: PreparedData) -> Ensemble:
    """Make an ensemble of stores that lie beside it; one that is there already is replaced.

    Args:
        path: its folder.
        names: of the members, such as "main.zarr".
        blend: how they are averaged.
        data: the samples; labels of the test split tell how good the average is.

    Raises:
        MismatchError: views, samples or classes of the members differ.
        StoreError: there is a store of logits.
    """
    ensemble = open_members(path, names, blend)
    if views_of(ensemble).mixes:
        ensemble.require_same_blocks()
    logits = ensemble.held_out("test", data.test)
    top1 = None if logits is None else compare(logits, torch.from_numpy(data.test.labels)).top1
    ensemble.write(path, top1)
    return ensemble
