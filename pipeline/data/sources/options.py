"""What a source may need beside its own name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a source may need beside its own name.

    Args:
        root: folder for downloads.
        channels: 1 (grey) or 3 (colour), how image files are decoded.

    """

    root: Path
    channels: int = 3
