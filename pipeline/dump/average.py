"""Stage one without a teacher: combine existing dumps into an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.codecs.blend import Blend
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.table import views_of
from pipeline.places.folder import Root
from pipeline.store.ensemble import Ensemble, open_members
from pipeline.store.labels import words_of


def write_ensemble(path: Root, names: Sequence[str], blend: Blend, context: RunContext) -> Ensemble:
    """Write an ensemble of stores in the same folder, and replace an existing one.

    Args:
        path: the ensemble's folder.
        names: the members, e.g. "main.zarr".
        blend: the averaging rule.
        context: the samples; labels of the test split measure the quality of the average.

    Raises:
        MismatchError: views, samples or classes of the members differ.
        StoreError: the path holds a store of logits.
    """
    ensemble = open_members(path, names, blend)
    if views_of(ensemble).mixes:
        ensemble.require_same_blocks()
    outputs, labels = ensemble.held_out("test", context.data.test), context.data.test.labels
    quality = None if outputs is None else context.task.quality(outputs, labels)
    ensemble.write(path, quality, words_of(splits_of(context.data)))
    return ensemble
