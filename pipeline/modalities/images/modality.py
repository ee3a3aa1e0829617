"""Images as a modality: where the rest of the library finds what is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.modalities.images.images import open_encoded
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.index import Form
from pipeline.samples.packed import Images as Split
from pipeline.samples.packed import open_packed


class Images:
    """Pixels (H, W, C) uint8, 1 or 3 channels."""

    name = "images"

    def open_split(self, folder: Path, name: str, form: Form) -> Split:
        """Open one split, kept as pixels or as files."""
        return open_packed(folder, name, form) if form.packs else open_encoded(folder, name, form)

    def views(self, plain: Mapping[str, Any]) -> ViewSpec:
        """Return the views that a canonical form describes."""
        return ViewSpec.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that plain values describe."""
        return Preprocessing.parse(plain)


IMAGES = Images()
