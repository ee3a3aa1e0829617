"""The witness of a shard: what some of its samples looked like to the teacher, and what rendered them.

A reader renders the same samples again: other bytes mean that a decoder, a resize kernel or a device does
something else here than it did there, and that cached logits no longer belong to the pixels.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

WITNESSES_A_SHARD = 64
# Pixels of each image whose values are kept, to tell how far off a rendering is.
PLACES = 4


@dataclass(frozen=True, slots=True)
class Witness:
    """W rendered samples.

    Args:
        crcs: CRC-32 of each sample's pixels (S, S, channels) uint8.
        pixels: (W, n) uint8, a few of these pixels, spread over the image.
    """

    crcs: tuple[int, ...]
    pixels: NDArray[np.uint8]

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Witness:
        """Look at rendered samples (W, S, S, channels) uint8."""
        flat = images.reshape(len(images), -1, images.shape[3])
        places = (2 * np.arange(PLACES) + 1) * flat.shape[1] // (2 * PLACES)
        crcs = tuple(zlib.crc32(np.ascontiguousarray(image).data) for image in images)
        return cls(crcs, flat[:, places].reshape(len(images), -1))

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.pixels.shape[1]) // PLACES

    def __getitem__(self, rows: NDArray[Any]) -> Witness:
        return Witness(tuple(np.array(self.crcs, np.int64)[rows].tolist()), self.pixels[rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the witness as plain values: base64 of 32-bit words, low bytes first, and of pixels."""
        words = np.array(self.crcs, "<u4").tobytes()
        return {
            "crcs": base64.b64encode(words).decode(),
            "pixels": base64.b64encode(self.pixels.tobytes()).decode(),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Witness:
        """Return the witness that `to_dict` described.

        Raises:
            ValueError: it is of no samples, or not of a few pixels of each.
        """
        crcs, pixels = (
            np.frombuffer(base64.b64decode(value[name]), kind)
            for name, kind in (("crcs", "<u4"), ("pixels", np.uint8))
        )
        if not len(crcs) or not len(pixels) or len(pixels) % (PLACES * len(crcs)):
            raise ValueError(f"a witness has {len(pixels)} pixels for {len(crcs)} samples")
        return cls(tuple(crcs.tolist()), pixels.reshape(len(crcs), -1))


def witness_rows(count: int) -> NDArray[np.int64]:
    """Return which of a shard's rows are witnesses, ascending and spread evenly."""
    return np.linspace(0, count - 1, min(count, WITNESSES_A_SHARD)).astype(np.int64)


def versions(decoder: str) -> dict[str, str]:
    """Return what decodes and renders here: part of every store's header."""
    return {"decoder": decoder, **{name: version(name) for name in ("torch", "torchvision")}}
