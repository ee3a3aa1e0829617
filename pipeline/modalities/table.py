"""The table of modalities, and what a store's plain values mean in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, CorruptStoreError, ModelError, quoted
from pipeline.modalities.families import Source
from pipeline.modalities.images.modality import IMAGES
from pipeline.modalities.modality import Modality, Preprocessing, Views
from pipeline.samples.packed import Split
from pipeline.store.arrays import RESTORE, reason
from pipeline.store.soft_labels import SoftLabels


def find_modality(name: str = "images") -> Modality:
    """Return a modality by its name.

    Raises:
        ConfigError: there is none.
    """
    if name != IMAGES.name:
        raise ConfigError(f"modality {quoted(name)} is unknown; expected {IMAGES.name}")
    return IMAGES


def families() -> tuple[Source, ...]:
    """Return the sources of models of all modalities, those with a prefix to their names first."""
    return IMAGES.families


def read_views(plain: Mapping[str, Any], origin: object) -> Views:
    """Return the views that a store's header describes.

    Args:
        plain: the canonical form.
        origin: the store, for errors.

    Raises:
        MismatchError: another version of this program described them.
        CorruptStoreError: they are no views.
    """
    try:
        return find_modality().views(plain)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(
            f"{origin}: its header describes no views ({reason(error)}); {RESTORE}"
        ) from None


def views_of(labels: SoftLabels) -> Views:
    """Return which views a store's teacher saw; see `read_views`."""
    return read_views(labels.views, labels.location)


def mixed_blocks(labels: SoftLabels, images: Split) -> NDArray[np.int64] | None:
    """Return, where views mix, the block of each sample (N,) inside which it was mixed; else None.

    Raises:
        MismatchError: samples that others are mixed with are not among these.
    """
    return labels.blocks_of(images) if views_of(labels).mixes else None


def preprocessing_of(labels: SoftLabels) -> Preprocessing:
    """Return how a store's teacher, or the first of several, wants its samples.

    Raises:
        CorruptStoreError: its header describes no preprocessing.
    """
    try:
        return find_modality().preprocessing(labels.teacher["preprocessing"])
    except (ValueError, TypeError, KeyError, RecursionError, ModelError) as error:
        raise CorruptStoreError(
            f"{labels.location}: its header describes no preprocessing ({reason(error)}); {RESTORE}"
        ) from None
