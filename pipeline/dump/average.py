"""Stage one without a teacher: dumps that are there become one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.codecs.blend import Blend
from pipeline.evaluation.context import Bench
from pipeline.modalities.table import views_of
from pipeline.store.ensemble import Ensemble, open_members
from pipeline.tasks.task import quality


def write_ensemble(path: Path, names: Sequence[str], blend: Blend, bench: Bench) -> Ensemble:
    """Make an ensemble of stores that lie beside it; one that is there already is replaced.

    Args:
        path: its folder.
        names: of the members, such as "main.zarr".
        blend: how they are averaged.
        bench: the samples; labels of the test split tell how good the average is.

    Raises:
        MismatchError: views, samples or classes of the members differ.
        StoreError: there is a store of logits.
    """
    ensemble = open_members(path, names, blend)
    if views_of(ensemble).mixes:
        ensemble.require_same_blocks()
    outputs = ensemble.held_out("test", bench.data.test)
    ensemble.write(path, None if outputs is None else quality(bench.task, outputs, bench.data.test.labels))
    return ensemble
