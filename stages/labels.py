"""Tell a user that labels of the prepared data differ from those that a store was made with.

No command refuses a corrected label: see `pipeline/store/labels.py`.
"""

from __future__ import annotations

from contextlib import suppress

from pipeline.core.errors import DataError, StoreError
from pipeline.core.progress import note
from pipeline.modalities.prepared import PreparedData
from pipeline.places.location import Address
from pipeline.samples.description import DESCRIPTION, SPLITS
from pipeline.samples.index import read_labels
from pipeline.samples.label_forms import label_words
from pipeline.samples.labels import LabelWords
from pipeline.store.labels import LabelChanges, changed_labels, words_of
from pipeline.store.opening import open_logits
from pipeline.store.reference import kind_of
from pipeline.store.soft_labels import SoftLabels
from pipeline.store.summary import samples_of
from stages import paths


def tell_changed_labels(store: SoftLabels, data: PreparedData) -> LabelChanges:
    """Compare a store's labels with those of the data, and print a note if some have changed."""
    changes = store.label_changes(words_of({name: getattr(data, name) for name in SPLITS}))
    if changes.changed:
        note(f"{store.location}: {changes}")
    return changes


def changes_at(place: Address) -> LabelChanges | None:
    """Compare the labels of a store, complete or not, with those of the prepared data in this project.

    None without prepared data. Samples, names and user code are not read. A damaged index, which other
    commands report, tells nothing.
    """
    if not (paths.PREPARED / DESCRIPTION).exists():
        return None
    with suppress(DataError, StoreError):
        if kind_of(place) == "logits":
            return changed_labels(samples_of(place), _prepared_labels())
        return open_logits(place).label_changes(_prepared_labels())
    return LabelChanges()


def _prepared_labels() -> LabelWords:
    found = {name: read_labels(paths.PREPARED, name) for name in SPLITS}
    return {name: (keys, label_words(labels)) for name, (keys, labels) in found.items()}
