"""The table of modalities, those of one's own that were named, and what a store says in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import CorruptStoreError, ModelError
from pipeline.core.open_table import OpenTable
from pipeline.core.own_code import Kind
from pipeline.modalities.families import Family
from pipeline.modalities.images.modality import IMAGES
from pipeline.modalities.modality import Modality
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.packed import Split
from pipeline.store.arrays import RESTORE, reason
from pipeline.store.soft_labels import SoftLabels

DEFAULT = IMAGES.name
MODALITIES: OpenTable[Modality] = OpenTable(
    Kind(noun="modality", returns="a modality", plural="modalities"), [IMAGES], Modality
)


def find_modality(name: str = DEFAULT) -> Modality:
    """Return a modality by its name; see `OpenTable.find`."""
    return MODALITIES.find(name)


def families() -> tuple[Family, ...]:
    """Return the sources of models of all modalities, those with a prefix to their names first."""
    return tuple(family for modality in MODALITIES for family in modality.families)


def modality_of(plain: Mapping[str, Any]) -> str:
    """Return the name of the modality in a model's card, or a teacher's in a header, as plain values."""
    return str(plain.get("modality", DEFAULT))


def read_views(plain: Mapping[str, Any], teacher: Mapping[str, Any], origin: object) -> Views:
    """Return the views that a store's header describes.

    Args:
        plain: the canonical form.
        teacher: as the header describes it.
        origin: the store, for errors.

    Raises:
        ConfigError: the modality is code that nobody named.
        MismatchError: another version of this program described them.
        CorruptStoreError: they are no views.
    """
    known = find_modality(modality_of(teacher))
    try:
        return known.views(plain)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(
            f"{origin}: its header describes no views ({reason(error)}); {RESTORE}"
        ) from None


def views_of(labels: SoftLabels) -> Views:
    """Return which views a store's teacher saw; see `read_views`."""
    return read_views(labels.views, labels.teacher, labels.location)


def mixed_blocks(labels: SoftLabels, images: Split) -> NDArray[np.int64] | None:
    """Return, where views mix, the block of each sample (N,) inside which it was mixed; else None.

    Raises:
        MismatchError: samples that others are mixed with are not among these.
    """
    return labels.blocks_of(images) if views_of(labels).mixes else None


def preprocessing_of(labels: SoftLabels) -> Preprocessing:
    """Return how a store's teacher, or the first of several, wants its samples.

    Raises:
        ConfigError: the modality is code that nobody named.
        CorruptStoreError: its header describes no preprocessing.
    """
    known = find_modality(modality_of(labels.teacher))
    try:
        return known.preprocessing(labels.teacher["preprocessing"])
    except (ValueError, TypeError, KeyError, RecursionError, ModelError) as error:
        raise CorruptStoreError(
            f"{labels.location}: its header describes no preprocessing ({reason(error)}); {RESTORE}"
        ) from None
