"""Which views of an image exist: the augmentation as data, with a canonical form and a digest.

Owns names, ranges and contradictions; `parameters.py` draws from a spec, `render.py` makes pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.digests import spec_digest
from pipeline.errors import ConfigError

# Raised by hand when the same spec would render other pixels; part of every store's fingerprint.
SEMANTICS = 1


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {found}; expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PadCrop:
    """Shift the centred square by up to `padding` source pixels each way; outside is black.

    Args:
        padding: pixels of the source image, 1 to 64.

    """

    padding: int = 4

    def __post_init__(self) -> None:
        _require(1 <= self.padding <= 64, "pad_crop.padding", self.padding, "1 to 64 pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, as torchvision's transform of that name draws it.

    Args:
        scale: smallest and largest share of the image's area, 0 < low <= high <= 1.
        ratio: smallest and largest width / height, log-uniform, 0 < low <= high.

    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("ratio", self.ratio, 100.0)):
            expected = f"[low, high] with 0 < low <= high <= {top:g}"
            _require(0 < low <= high <= top, f"random_resized_crop.{name}", [low, high], expected)
            # Equal specs, equal digests: 1 and 1.0 are not the same text.
            object.__setattr__(self, name, (float(low), float(high)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """How view number v of a sample is drawn: a pure function of (seed, v, sample key).

    Args:
        seed: 64-bit unsigned.
        pad_crop: shifts for small images; not together with `random_resized_crop`.
        random_resized_crop: boxes of random area and aspect.
        flip: horizontal flip: "none", "random" (one half), or "alternating" (a random half of the
            samples in even views, the other half in odd ones).

    """

    seed: int = 0
    pad_crop: PadCrop | None = None
    random_resized_crop: RandomResizedCrop | None = None
    flip: Literal["none", "random", "alternating"] = "none"

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 64, "views.seed", self.seed, "0 to 2^64 - 1")
        _require(
            self.pad_crop is None or self.random_resized_crop is None,
            "views",
            "given both pad_crop and random_resized_crop",
            "one way to crop; remove the other",
        )

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's meaning."""
        return {"semantics": SEMANTICS, **asdict(self)}

    @classmethod
    def from_canonical(cls, value: Mapping[str, Any]) -> ViewSpec:
        """Return the spec that `canonical` described."""
        pad, resized = value["pad_crop"], value["random_resized_crop"]
        return cls(
            seed=value["seed"],
            pad_crop=None if pad is None else PadCrop(**pad),
            random_resized_crop=None
            if resized is None
            else RandomResizedCrop(scale=tuple(resized["scale"]), ratio=tuple(resized["ratio"])),
            flip=value["flip"],
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""
        return spec_digest(self.canonical())
