"""Images as a modality: where the rest of the library finds what is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec


class Images:
    """Pixels (H, W, C) uint8, 1 or 3 channels."""

    name = "images"

    def views(self, plain: Mapping[str, Any]) -> ViewSpec:
        """Return the views that a canonical form describes."""
        return ViewSpec.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that plain values describe."""
        return Preprocessing.parse(plain)


IMAGES = Images()
