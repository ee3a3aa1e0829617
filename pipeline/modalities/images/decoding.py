"""Decode image files to pixels, and find their shape without decoding.

torchvision decodes JPEG, PNG, still WebP and GIF; Pillow decodes the rest. The bytes decide, not the
suffix. Only the first picture of an animation is used. Alpha is dropped, and every format is oriented
according to EXIF. `shrink` reduces large images once, at preparation.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode
from torchvision.transforms.v2 import functional

from pipeline.core.errors import DataError, brief, counted, is_out_of_memory
from pipeline.modalities.images.formats import (
    GIF,
    HAS_AVIF,
    JPEG,
    PNG,
    decode_by_pillow,
    first_picture,
    header_shape,
    is_animated_webp,
    is_deep_png,
    is_webp,
    opened_deep,
    opened_shape,
    opener_of,
    orientation_of,
    stored_shape,
    upright,
    webp_exif,
)

DECODER = f"torchvision {version('torchvision')}"
# In groups: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
    *((".avif",) if HAS_AVIF else ()),
)
# Pillow's own limit: twice a quarter of a gigabyte of RGB.
MAX_PIXELS = 178_956_970

Bytes = NDArray[np.uint8]  # (n,)
Image_HWC = NDArray[np.uint8]
_HEAD_BYTES = 64
# Enough for nearly every header: EXIF with a preview takes up to 64 KiB, colour profiles more.
_HEADER_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file; call it, or read, check and decode it step by step.

    Args:
        path: path of the file, or a name of it for messages.
        channels: channels of the decoded image, 1 (grey) or 3 (colour).
        max_pixels: larger images are refused before decoding.
        content: returns the bytes of an image inside a larger file. None reads the file.
    """

    path: Path | str
    channels: int
    max_pixels: int = MAX_PIXELS
    content: Callable[[], Bytes] | None = None

    def __call__(self) -> Image_HWC:
        """Return the pixels (H, W, C)."""
        content = self.read()
        self.pixels(content)
        return self.decode(content)

    def read(self) -> Bytes:
        """Return the file's bytes.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        return read_file(Path(self.path)) if self.content is None else self.content()

    def pixels(self, content: Bytes) -> int:
        """Return the number of pixels to decode, from the header; 0 if the header cannot be read.

        Raises:
            DataError: more than `max_pixels`.
        """
        height, width = stored_size(content) or (0, 0)
        if height * width > self.max_pixels:
            raise DataError(
                f"{self.path}: {width:,}x{height:,} pixels, according to its header; expected at most "
                f"{self.max_pixels:,} in total; shrink or remove the file, or raise data.max_pixels"
            )
        return height * width

    def decode(self, content: Bytes) -> Image_HWC:
        """Return the pixels (H, W, C) of the file's bytes."""
        return decode(content, self.channels, self.path)

    def shape(self, content: Bytes) -> tuple[int, int]:
        """Return height and width of the result of `decode`."""
        self.pixels(content)
        return image_shape(content, self.channels, self.path)


def read_file(path: Path) -> Bytes:
    """Return a file's bytes.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would never end
            raise DataError(_unreadable(path, "not a regular file"))
        return np.fromfile(path, np.uint8)
    except MemoryError:
        raise DataError(_unreadable(path, "larger than memory")) from None
    except OSError as error:
        reason = "gone" if not path.exists() else error.strerror or str(error)
        raise DataError(_unreadable(path, reason)) from None


def load_image(path: Path, channels: int) -> Image_HWC:
    """Return the pixels of an image file, upright."""
    return ImageFile(path, channels)()


def decode(content: Bytes, channels: int, path: Path | str) -> Image_HWC:
    """Decode a file's bytes to pixels (H, W, C), oriented according to EXIF.

    Args:
        content: bytes of the file.
        channels: 1 (grey) or 3 (colour).
        path: name of the file, for errors.

    Raises:
        DataError: the bytes are not an image.
    """
    try:
        if _is_torchvisions(content):
            return _by_torchvision(content, channels)
        return decode_by_pillow(content.tobytes(), channels)
    # Decoders get arbitrary bytes and raise errors of any type.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DataError(_unreadable(path, f"{counted(len(content), 'byte')}: {_reason(error)}")) from None


def image_shape(content: Bytes, channels: int, path: Path | str) -> tuple[int, int]:
    """Return height and width of the result of `decode`, from the header if possible.

    Raises:
        DataError: the bytes are not an image. Damage behind the header stays undetected.
    """
    shape = header_shape(content.tobytes())
    if shape is None:
        height, width, _ = decode(content, channels, path).shape
        return height, width
    return shape


def stored_size(content: Bytes) -> tuple[int, int] | None:
    """Return height and width that a decoder would unpack, or None without a readable header."""
    head = content[:_HEAD_BYTES].tobytes()
    try:
        if head.startswith(GIF):
            shapes = (stored_shape(head) or (0, 0), first_picture(content.tobytes()).shape)
            return max(height for height, _ in shapes), max(width for _, width in shapes)
        if _is_torchvisions(content):
            return stored_shape(content.tobytes() if head.startswith(JPEG) else head)
        return None if opener_of(head) is None else opened_shape(content.tobytes())
    # A file that cannot be opened cannot be decoded either; decoding refuses it.
    except Exception:
        return None


def header_size(path: Path) -> tuple[int, int] | None:
    """Return height and width as stored in a file, from its first bytes if possible.

    None if no header has them, or the file cannot be read.
    """
    for most in (_HEADER_BYTES, -1):
        try:
            with path.open("rb") as file:
                content = file.read(most)
        except OSError:
            return None
        size = stored_size(np.frombuffer(bytearray(content), np.uint8))
        if size is not None or len(content) < _HEADER_BYTES:
            return size
    return None


def is_deep(content: Bytes) -> bool:
    """Whether a decodable file has 16 bits per sample."""
    head = content[:_HEAD_BYTES].tobytes()
    if head.startswith(PNG):
        return is_deep_png(head)
    return opener_of(head) is not None and opened_deep(content.tobytes())


def _is_torchvisions(content: Bytes) -> bool:
    head = content[:_HEAD_BYTES].tobytes()
    return head.startswith((JPEG, PNG, *GIF)) or (is_webp(head) and not is_animated_webp(head))


def _by_torchvision(content: Bytes, channels: int) -> Image_HWC:
    head = content[:_HEAD_BYTES].tobytes()
    if head.startswith(GIF):
        content = np.frombuffer(bytearray(first_picture(content.tobytes()).content), np.uint8)
    # WebP and GIF are decoded to colour and then to grey.
    whole = channels == 3 or head.startswith((*GIF, b"RIFF"))
    mode = ImageReadMode.RGB if whole else ImageReadMode.GRAY
    image = torchvision_decode(torch.from_numpy(content), mode, apply_exif_orientation=True)
    image = image[0] if image.ndim == 4 else image  # the remaining picture of an animation
    image = functional.to_dtype(image, torch.uint8, scale=True)  # a PNG may have 16 bits
    if len(image) > channels:
        image = functional.rgb_to_grayscale(image)
    pixels: Image_HWC = image.permute(1, 2, 0).contiguous().numpy()
    return upright(pixels, orientation_of(webp_exif(content.tobytes()))) if is_webp(head) else pixels


def _reason(error: Exception) -> str:
    """Return the first line of a decoder's error, or a plain text if that line is useless."""
    text = brief(error)
    if text.startswith(("Internal error", "Unsupported image file")):  # torchvision's texts for any damage
        return "damaged or truncated"
    return text or type(error).__name__


def _unreadable(path: Path | str, reason: str) -> str:
    return (
        f"{path}: not a readable image ({reason}); expected JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG "
        "2000 or AVIF; replace or remove the file"
    )


def shrunk_shape(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the shape with a shorter side of at most `short_side` pixels; None keeps every shape.

    The longer side keeps the aspect ratio, rounded to the nearest pixel.
    """
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return height, width
    # Rounded in integers: half a pixel is rounded up.
    rounded = [(2 * side * short_side + shorter) // (2 * shorter) for side in (height, width)]
    return rounded[0], rounded[1]


def shrink(image_HWC: NDArray[np.uint8], short_side: int | None) -> NDArray[np.uint8]:
    """Shrink an image to a shorter side of at most `short_side` pixels; a smaller one is unchanged.

    Uses torch's uint8 antialiased bilinear kernel, as `torchvision.transforms.v2` does.
    """
    height, width, _ = image_HWC.shape
    shape = shrunk_shape(height, width, short_side)
    if shape == (height, width):
        return image_HWC
    # A copy: the image may be read-only.
    source = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None]
    shrunk = F.interpolate(source, shape, mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = shrunk[0].permute(1, 2, 0).contiguous().numpy()
    return pixels
