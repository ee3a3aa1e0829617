"""The modality `items`: connects its sources, views, rendering and models to the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.modalities.items.form import HistoryForm, ItemsIntake, ItemsSource
from pipeline.modalities.items.models.recommenders import Recommenders
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.pictures import listed
from pipeline.modalities.items.preprocessing import GivenItems, ItemsPreprocessing
from pipeline.modalities.items.sources import open_source
from pipeline.modalities.items.sources.recognise import recognise
from pipeline.modalities.items.spec import ItemsViews
from pipeline.modalities.modality import Modality, Recognised
from pipeline.modalities.picture import Picture
from pipeline.samples.index import Form
from pipeline.samples.packed import Split


class Items(Modality):
    """Histories (n,) int32 of items, the next item as label."""

    name = "items"
    task = "next_item"
    families = (Recommenders(),)
    options_type = ItemsOptions
    views_type = ItemsViews
    preprocessing_type = GivenItems
    refusals = dict.fromkeys(
        ("mixup", "cutmix"), "histories are not mixed, since the average of two items is no item"
    )

    def open_source(self, source: str, options: ItemsOptions) -> ItemsSource:
        """Find a log of interactions; see `sources`."""
        return open_source(source, options)

    def recognise(self, path: Path, name: str) -> Recognised | None:
        """Return how to read a log: RecBole's atomic files, or a table of users and items."""
        return recognise(path, name)

    def intake(self, source: ItemsSource, folder: Path, options: ItemsOptions) -> ItemsIntake:
        """Return the reader of histories for `pipeline prepare`."""
        return ItemsIntake(source.classes)

    def described(self, plain: Mapping[str, Any]) -> tuple[HistoryForm, dict[str, Any]]:
        """Return the form of histories, and the size of the catalogue."""
        form = HistoryForm.parse(plain)
        return form, {"items": len(form.items)}

    def views(self, plain: Mapping[str, Any]) -> ItemsViews:
        """Return the views described by a canonical form."""
        return ItemsViews.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> ItemsPreprocessing:
        """Return the preprocessing described by plain values."""
        return ItemsPreprocessing.parse(plain)

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> ItemsPreprocessing:
        """Return the preprocessing of a model without weights: the latest `size` items."""
        return ItemsPreprocessing(items=int(known["items"]), max_length=size or ItemsOptions().max_length)

    def picture(
        self,
        shown: NDArray[np.integer[Any]],
        plain: NDArray[np.integer[Any]] | None = None,
        *,
        form: Form | None = None,
    ) -> Picture:
        """Return a history (n,) as a list of items, with changes marked."""
        before = None if plain is None else plain.astype(np.int32)
        return listed(shown.astype(np.int32), before, cast(HistoryForm, form).items)


ITEMS = Items()
