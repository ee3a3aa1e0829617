"""The table of modalities, user code included, and readers of stored descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import CorruptStoreError, MismatchError, ModelError, quoted
from pipeline.core.open_table import OpenTable
from pipeline.core.own_code import Kind
from pipeline.modalities.families import Family
from pipeline.modalities.modality import Modality
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import CLASSES, IMAGES
from pipeline.samples.labels import moved_class
from pipeline.samples.packed import Split
from pipeline.store.arrays import reason
from pipeline.store.commands import restoring
from pipeline.store.rehead import EMBEDDING, Reheaded
from pipeline.store.soft_labels import SoftLabels

# Imported on use: a project of texts needs no library of images, and one of images none of texts.


def _images() -> Modality:
    from pipeline.modalities.images.modality import IMAGES

    return IMAGES


def _text() -> Modality:
    from pipeline.modalities.text.modality import TEXTS

    return TEXTS


def _audio() -> Modality:
    from pipeline.modalities.audio.modality import AUDIO

    return AUDIO


def _items() -> Modality:
    from pipeline.modalities.items.modality import ITEMS

    return ITEMS


DEFAULT = IMAGES
MODALITIES: OpenTable[Modality] = OpenTable(
    Kind(noun="modality", returns="a modality", plural="modalities"),
    {IMAGES: _images, "items": _items, "text": _text, "audio": _audio},
    Modality,
    key="data.modality",
    address="pipeline.modalities.table.MODALITIES",
)


def find_modality(name: str = DEFAULT) -> Modality:
    """Return a modality by its name; see `OpenTable.find`."""
    return MODALITIES.find(name)


def families() -> Iterator[Family]:
    """Yield the model families of all modalities; a modality is imported when it is reached."""
    return (family for modality in MODALITIES for family in modality.families)


def modality_of(plain: Mapping[str, Any]) -> str:
    """Return the modality's name from a model's card, or from the teacher in a store's header."""
    return str(plain.get("modality", DEFAULT))


def read_views(plain: Mapping[str, Any], teacher: Mapping[str, Any], origin: object) -> Views:
    """Return the views described in a store's header.

    Args:
        plain: canonical form of the views.
        teacher: description of the teacher in the header.
        origin: the store, for error messages.

    Raises:
        ConfigError: the modality is user code that was not named.
        MismatchError: written by an incompatible version of this program.
        CorruptStoreError: not a description of views.
    """
    known = find_modality(modality_of(teacher))
    try:
        return known.views(plain)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(
            f"{origin}: the header does not describe views ({reason(error)}); {restoring(origin)}"
        ) from None


def views_of(labels: SoftLabels) -> Views:
    """Return the views of a store; see `read_views`."""
    return read_views(labels.views, labels.teacher, labels.location)


def mixed_blocks(labels: SoftLabels, images: Split) -> NDArray[np.int64] | None:
    """Return the block (N,) in which each sample was mixed, or None for views without mixing.

    Raises:
        MismatchError: mixing partners are missing from these samples.
    """
    return labels.blocks_of(images) if views_of(labels).mixes else None


def preprocessing_of(labels: SoftLabels) -> Preprocessing:
    """Return the preprocessing of a store's teacher, or of the first of several.

    Raises:
        ConfigError: the modality is user code that was not named.
        CorruptStoreError: the header describes no preprocessing.
    """
    known = find_modality(modality_of(labels.teacher))
    try:
        return known.preprocessing(labels.teacher["preprocessing"])
    except (ValueError, TypeError, KeyError, RecursionError, ModelError) as error:
        raise CorruptStoreError(
            f"{labels.location}: the header does not describe preprocessing ({reason(error)}); "
            f"{restoring(labels.location)}"
        ) from None


def require_data_classes(labels: SoftLabels, classes: Sequence[str], task: str) -> None:
    """Refuse outputs of teachers whose classes are not the data's, in their order.

    Labels are not part of a sample's digest, so this alone keeps an output and a label of one index apart
    from those of another class. Classes with new names in the old places pass, and so do the classes of
    another head, which were chosen on purpose.

    Args:
        labels: the store.
        classes: of the data.
        task: name of the data's task.

    Raises:
        MismatchError: names the store, and the first class that differs.
    """
    if isinstance(labels, Reheaded) or task == EMBEDDING:
        return
    for member in labels.members:
        theirs = member.teacher["classes"]
        if str(member.teacher.get("task", CLASSES)) != task:
            continue
        if len(theirs) != len(classes):
            what = f"has {len(theirs):,} classes, and the data has {len(classes):,}"
        elif (moved := moved_class(theirs, classes)) is not None:
            what = (
                f"has the data's classes in another order: class {moved} is {quoted(theirs[moved])}, and "
                f"{classes[moved]!r} in the data"
            )
        else:
            continue
        raise MismatchError(
            f"{member.location}: its teacher {what}; expected the classes of the dump, since outputs and "
            "labels meet by their number; restore them in the data, or make a new dump"
        )
