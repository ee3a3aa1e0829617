"""Stage one without a teacher: dumps that are there become one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.codecs.blend import Blend
from pipeline.evaluation.context import RunContext
from pipeline.modalities.table import views_of
from pipeline.store.ensemble import Ensemble, open_members
from pipeline.tasks.task import quality


def write_ensemble(path: Path, names: Sequence[str], blend: Blend, context: RunContext) -> Ensemble:
    """Make an ensemble of stores that lie beside it; one that is there already is replaced.

    Args:
        path: its folder.
        names: of the members, such as "main.zarr".
        blend: how they are averaged.
        context: the samples; labels of the test split tell how good the average is.

    Raises:
        MismatchError: views, samples or classes of the members differ.
        StoreError: there is a store of logits.
    """
    ensemble = open_members(path, names, blend)
    if views_of(ensemble).mixes:
        ensemble.require_same_blocks()
    outputs = ensemble.held_out("test", context.data.test)
    ensemble.write(
        path, None if outputs is None else quality(context.task, outputs, context.data.test.labels)
    )
    return ensemble
