"""Image files to pixels, and how large they will be, without decoding them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode
from torchvision.transforms.v2 import functional

from pipeline.data.headers import header_shape
from pipeline.errors import DataError

DECODER = f"torchvision {version('torchvision')}"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")

Bytes = NDArray[np.uint8]  # (n,)
Image_HWC = NDArray[np.uint8]


def read_file(path: Path) -> Bytes:
    """Return a file's bytes.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        reason = "gone" if not path.exists() else error.strerror or str(error)
        raise DataError(_unreadable(path, reason)) from None


def load_image(path: Path, channels: int) -> Image_HWC:
    """Return the pixels of an image file, upright."""
    return decode(read_file(path), channels, path)


def decode(content: Bytes, channels: int, path: Path) -> Image_HWC:
    """Return the pixels (H, W, C) of a file's bytes, turned as their EXIF says.

    Args:
        content: of the file.
        channels: 1 (grey) or 3 (colour).
        path: its name, for errors.

    Raises:
        DataError: it is no image.
    """
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    try:
        image = torchvision_decode(torch.from_numpy(content), mode, apply_exif_orientation=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(_unreadable(path, f"{len(content)} bytes: {reason}")) from None
    image = image[0] if image.ndim == 4 else image  # the first frame of an animation
    image = functional.to_dtype(image, torch.uint8, scale=True)  # a PNG may have 16 bits
    if len(image) > channels:  # WebP and GIF are not decoded to grey
        image = functional.rgb_to_grayscale(image)
    pixels: Image_HWC = image.permute(1, 2, 0).contiguous().numpy()
    return pixels


def image_shape(content: Bytes, channels: int, path: Path) -> tuple[int, int]:
    """Return height and width of what `decode` makes of these bytes, from the header where that tells.

    Raises:
        DataError: it is no image. One that is damaged behind its header is not found out.
    """
    shape = header_shape(content.tobytes())
    if shape is None:
        height, width, _ = decode(content, channels, path).shape
        return height, width
    return shape


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path}: not a readable image ({reason}); expected JPEG, PNG, WebP or GIF; replace or remove the "
        "file"
    )
