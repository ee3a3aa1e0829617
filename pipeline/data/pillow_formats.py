"""Formats that torchvision does not decode, by Pillow: BMP, TIFF, PPM, JPEG 2000, AVIF, and animated WebP.

Only the listed formats are opened, by the signature of the bytes: Pillow knows others, some of which run
programs. Images have 8 or 16 bits per sample; of 16 the upper 8 are kept, as of a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.data.animations import is_animated_webp
from pipeline.data.headers import Shape, stored_shape
from pipeline.data.orientation import orientation_of, upright, webp_exif

_SIGNATURES: tuple[tuple[bytes, Callable[..., ImageFile]], ...] = (
    (b"BM", BmpImageFile),
    *((start, TiffImageFile) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"P%d" % kind, PpmImageFile) for kind in range(1, 7)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImageFile),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LARGEST = 0xFFFF  # of 16 bits
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, and a value
# Pillow before 11.2 does not know the word, and warns of it.
HAS_AVIF = "avif" in features.modules and bool(features.check("avif"))


def opener_of(content: bytes) -> Callable[..., ImageFile] | None:
    """Return what opens these bytes, or None where they are of no format of this module."""
    if content[4:8] == b"ftyp":
        return _avif_opener() if _is_avif(content) else None
    if is_animated_webp(content):
        return WebPImageFile
    return next((opener for start, opener in _SIGNATURES if content.startswith(start)), None)


def opened_shape(content: bytes) -> Shape:
    """Return height and width as these bytes store them, without decoding them.

    Raises:
        ValueError: of no format of this module. Pillow raises other errors for damaged headers.
    """
    shape = stored_shape(content)  # Pillow takes room for a WebP when it opens it
    if shape is not None:
        return shape
    width, height = _opened(content).size
    return height, width


def opened_deep(content: bytes) -> bool:
    """Whether these bytes have more than 8 bits per sample, by their header."""
    image = _opened(content)
    if isinstance(image, TiffImageFile):  # Pillow opens colour of 16 bits as 8
        return bool(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8)
    return image.mode.startswith("I")


def decode_by_pillow(content: bytes, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of these bytes, of the first picture, turned as EXIF says.

    Raises:
        ValueError: of no format of this module, or of samples that are no 8 or 16 bits. Pillow raises other
            errors for damaged bytes.
    """
    image = _opened(content)
    image.load()
    if isinstance(image, TiffImageFile):  # Pillow turns it
        if image.mode == "I":
            raise ValueError("samples of 32 bits, expected 8 or 16")
        pixels = image_pixels(image, channels)
        # Of 16 bits Pillow leaves white that is stored as 0 as it is, of 8 it does not.
        inverted = image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return ~pixels if inverted else pixels
    exif = webp_exif(content) or image.info.get("exif", b"")
    return upright(image_pixels(image, channels), orientation_of(exif))


def image_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of an image of Pillow, as they are stored.

    Raises:
        ValueError: samples that are no 8 or 16 bits.
    """
    if image.mode.startswith(("I", "F")):
        grey = _eight_bits(np.asarray(image), image.mode)
        return np.repeat(grey[..., None], channels, axis=2)
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def reason_against(content: bytes) -> str:
    """Say why bytes of no known signature are no image."""
    if not content:
        return "an empty file"
    if _is_avif(content):
        return "AVIF, which the installed Pillow does not decode"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        return "HEIC, which no installed decoder reads"
    if content.lstrip()[:1] == b"<":
        return "text that begins with <, e.g. a web page"
    return "no format that is known by its first bytes"


def _opened(content: bytes) -> ImageFile:
    opener = opener_of(content)
    if opener is None:
        raise ValueError(reason_against(content))
    # Not by Image.open, which bounds pixels by a global of Pillow's; ours are bounded by `data.max_pixels`.
    return opener(io.BytesIO(content))


def _avif_opener() -> Callable[..., ImageFile] | None:
    if not HAS_AVIF:
        return None
    from PIL.AvifImagePlugin import AvifImageFile

    return AvifImageFile


def _is_avif(content: bytes) -> bool:
    """Whether the brands of an ISO base media file name AVIF."""
    if content[4:8] != b"ftyp":
        return False
    length = int.from_bytes(content[:4], "big")
    brands = [content[8:12], *(content[place : place + 4] for place in range(16, min(length, 256), 4))]
    return any(brand in _AVIF_BRANDS for brand in brands)


def _eight_bits(samples: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    if mode == "F" or samples.min(initial=0) < 0 or samples.max(initial=0) > _LARGEST:
        raise ValueError("samples of 32 bits, expected 8 or 16")
    return (samples.astype(np.uint16) >> 8).astype(np.uint8)
