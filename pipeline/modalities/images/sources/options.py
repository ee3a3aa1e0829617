"""What a source may need beside its own name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.modalities.images.decoding import MAX_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a source may need beside its own name.

    Args:
        root: folder for downloads.
        channels: 1 (grey) or 3 (colour), how image files are decoded.
        max_pixels: image files of more are refused before they are decoded.

    """

    root: Path
    channels: int = 3
    max_pixels: int = MAX_PIXELS
