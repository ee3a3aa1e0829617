"""Datasets that are class folders of image files, ImageNet's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from pipeline.data.sample import Sample, Source
from pipeline.data.sources.options import SourceOptions
from pipeline.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


def open_folder(detail: str, options: SourceOptions) -> Source:
    """Open PATH/train/CLASS/* and PATH/test/CLASS/* (or val); hidden entries are passed over."""
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/* and PATH/test/CLASS/*; correct "
            "data.source"
        )
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:5]
        raise DataError(
            f"{root}: has the folders {found}; expected train/CLASS/* and test/CLASS/* (or "
            "val/CLASS/*); move the classes into train/ and some images of each into test/"
        )
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if _is_class(entry)))
    empty = next((name for name in classes if not _images(root / "train" / name)), None)
    if empty is not None and any(_images(root / "train" / name) for name in classes):
        raise DataError(
            f"{root / 'train' / empty}: a class without images; expected at least one; add some, or remove "
            "the folder"
        )
    return Source(
        classes=classes,
        channels=options.channels,
        train=_file_samples(root, "train", classes, options.channels),
        test=_file_samples(root, held_out, classes, options.channels),
        decoder=f"torchvision {version('torchvision')}",
    )


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _file_samples(root: Path, split: str, classes: Sequence[str], channels: int) -> list[Sample]:
    samples = []
    for folder in sorted(entry for entry in (root / split).iterdir() if _is_class(entry)):
        if folder.name not in classes:
            raise DataError(
                f"{folder}: a class that {root / 'train'} does not have ({len(classes)} classes); "
                "expected the same class folders; rename or remove it"
            )
        label = classes.index(folder.name)
        for path in _images(folder):
            name = path.relative_to(root).as_posix()
            samples.append(Sample(name, label, _decoder(path, channels)))
    if not samples:
        raise DataError(
            f"{root / split}: no image files in class folders; expected "
            f"{split}/CLASS/*{{{','.join(IMAGE_SUFFIXES)}}}"
        )
    return samples


def _decoder(path: Path, channels: int) -> Callable[[], NDArray[np.uint8]]:
    def load() -> NDArray[np.uint8]:
        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        try:
            image = decode_image(str(path), mode, apply_exif_orientation=True)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            size = f"{path.stat().st_size} bytes" if path.exists() else "gone"
            raise DataError(
                f"{path}: not a readable image ({size}: {reason}); expected "
                "JPEG, PNG, WebP or GIF; replace or remove the file"
            ) from None
        image = image[0] if image.ndim == 4 else image  # the first frame of an animation
        image = functional.to_dtype(image, torch.uint8, scale=True)  # a PNG may have 16 bits
        if len(image) > channels:  # WebP and GIF are not decoded to grey
            image = functional.rgb_to_grayscale(image)
        pixels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
        return pixels

    return load
