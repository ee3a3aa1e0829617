"""The table of modalities, those of one's own that were named, and what a store says in one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, CorruptStoreError, ModelError, did_you_mean, quoted
from pipeline.core.own_code import Kind, find_object
from pipeline.modalities.families import Family
from pipeline.modalities.images.modality import IMAGES
from pipeline.modalities.modality import Modality
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.packed import Split
from pipeline.store.arrays import RESTORE, reason
from pipeline.store.soft_labels import SoftLabels

DEFAULT = IMAGES.name
_KIND = Kind(
    noun="modality",
    returns="a modality: an object like pipeline.modalities.images.modality.IMAGES",
    plural="modalities",
)
_TABLE: Mapping[str, Modality] = {IMAGES.name: IMAGES}
# Of one's own, by `module:NAME`: those that the user named in this process. Files name them, too; that
# alone runs no code.
_NAMED: dict[str, Modality] = {}
_TRUSTED: set[str] = set()


def use_modality(name: str) -> Modality:
    """Return a modality that the user names: one of the table, or `module:NAME` of one's own code.

    Its module is imported, and files may name it from then on.

    Raises:
        ConfigError: there is none, or its code does not do.
    """
    if ":" in name and name not in _NAMED:
        found = find_object(name, _KIND)
        if not isinstance(found, Modality):
            raise ConfigError(
                f"modality {name} is a {type(found).__name__}; expected an object of a class derived from "
                "pipeline.modalities.modality.Modality; correct it"
            )
        if found.name != name:
            raise ConfigError(
                f"modality {name}: its name is {quoted(found.name)}; expected the one by "
                "which params.yaml finds it, since files will name it so; correct it"
            )
        _NAMED[name] = found
    return find_modality(name)


def trust_modalities(code: Iterable[str]) -> None:
    """Let files name modalities of these modules, or `module:NAME`: the user trusts their code."""
    _TRUSTED.update(code)


def find_modality(name: str = DEFAULT) -> Modality:
    """Return a modality by its name: one of the table, or of one's own that the user named before.

    Raises:
        ConfigError: there is none of this name, or nobody named this code.
    """
    known = {**_TABLE, **_NAMED}
    if name in known:
        return known[name]
    if ":" in name:
        if not _TRUSTED.isdisjoint({name, name.partition(":")[0]}):
            return use_modality(name)
        raise ConfigError(
            f"modality {quoted(name)} is code of one's own, which a file alone does not run; if this code "
            f"is yours: name it as data.modality in params.yaml, or add --trust-code {quoted(name)[1:-1]}"
        )
    raise ConfigError(
        f"modality {quoted(name)} is unknown; expected {', '.join(_TABLE)}, or module:NAME of your own"
        f"{did_you_mean(name, _TABLE)}"
    )


def families() -> tuple[Family, ...]:
    """Return the sources of models of all modalities, those with a prefix to their names first."""
    return tuple(
        family for modality in (*_NAMED.values(), *_TABLE.values()) for family in modality.families
    )


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
