"""In which form the images of a prepared dataset are kept."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

Keep = Literal["pixels", "encoded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """In which form the images of a prepared dataset are kept.

    Args:
        channels: 1 or 3.
        decoder: what makes pixels of files, with its version.
        keep: pixels, packed once, or encoded, files that are decoded at use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None leaves all alone.
        root: of files, the folder that names are relative to; where it is relative itself, to the folder
            of the prepared dataset. None for pixels.
    """

    channels: int
    decoder: str
    keep: Keep = "pixels"
    short_side: int | None = None
    root: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the form as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Return the form that `to_dict` described, among other things."""
        return cls(**{field.name: value[field.name] for field in fields(cls)})


def relative_root(root: Path, folder: Path) -> str:
    """Return the root of files as a prepared dataset in `folder` names it: the project may be moved."""
    return str(root) if root.is_absolute() else os.path.relpath(root, folder)


def find_root(root: str, folder: Path) -> Path:
    """Return the folder that `relative_root` named, absolute: a program may change its own folder."""
    # Not resolved: folders on the way may be links.
    return Path(os.path.abspath(folder / root))
