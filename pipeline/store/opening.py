"""Open a place that holds soft labels of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.places.location import Address
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore
from pipeline.store.reference import Kind, kind_of
from pipeline.store.rehead import Reheaded
from pipeline.store.soft_labels import SoftLabels

_OPEN: Mapping[Kind, Callable[..., SoftLabels]] = {
    "logits": LogitStore.open,
    "ensemble": Ensemble.open,
    "rehead": Reheaded.open,
}


def open_logits(place: Address, *, allow_drift: bool = False, **options: Any) -> SoftLabels:
    """Open a store of logits, an ensemble or a re-headed store.

    Raises:
        StoreError: the place has none of them, or an unfinished or changed one.
    """
    return _OPEN[kind_of(place, **options)](place, allow_drift=allow_drift, **options)
