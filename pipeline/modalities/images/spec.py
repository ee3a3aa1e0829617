"""The views of an image: the augmentation as data, with a canonical form and a digest.

Owns the combinations and contradictions of operations. `augmentations.py` owns the ranges of each,
`draw.py` draws from a spec, `rendering/` makes pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.core.errors import MismatchError, brief, quoted
from pipeline.core.hashing import Described, spec_digest
from pipeline.modalities.images.augmentations import (
    Autocontrast,
    ColorJitter,
    Cutmix,
    Equalize,
    Grayscale,
    Mixup,
    OwnAugmentation,
    PadCrop,
    Posterize,
    RandAugment,
    RandomAffine,
    RandomErasing,
    RandomResizedCrop,
    Sharpness,
    Solarize,
    TrivialAugment,
)
from pipeline.views.operations import Augmentation, operation, require, unknown_settings

# Raise it when a spec would render different pixels; part of every store's fingerprint.
SEMANTICS = 1

AUGMENTATIONS: Mapping[str, type[Augmentation]] = {
    kind.name: kind
    for kind in (
        *(PadCrop, RandomResizedCrop, RandAugment, TrivialAugment, RandomAffine, ColorJitter, Grayscale),
        *(Posterize, Solarize, Sharpness, Autocontrast, Equalize, RandomErasing, Mixup, Cutmix),
    )
}
_EVERY: Mapping[str, type[Augmentation]] = {**AUGMENTATIONS, OwnAugmentation.name: OwnAugmentation}
_FLIPS = ("none", "random", "alternating")
# Always in the canonical form. Other fields are added only if set, so a new operation leaves the digests
# of specs without it unchanged.
_ALWAYS = ("seed", "pad_crop", "random_resized_crop", "flip")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """How view number v of a sample is drawn: a pure function of (seed, v, sample key).

    Operations are applied in the order in which they stand here, each where it is not None.

    Args:
        seed: random seed of all draws, 64-bit unsigned.
        pad_crop: random shifts for small images; excludes `random_resized_crop`.
        random_resized_crop: crops of random area and aspect ratio; excludes `pad_crop`.
        flip: horizontal flip: none, random (half of the samples), or alternating (a random half in even
            views, the other half in odd views).
        rand_augment: several random operations of one magnitude; excludes `trivial_augment`.
        trivial_augment: one random operation of random magnitude; excludes `rand_augment`.
        random_affine: rotation, translation, scale and shear.
        color_jitter: brightness, contrast, saturation and hue.
        grayscale, posterize, solarize, sharpness, autocontrast, equalize: one operation on a share of the
            samples.
        own: your own function of the pixels, run on the CPU.
        random_erasing: a painted box.
        mixup, cutmix: mixing with another image of the view; both probabilities sum to at most 1.

    Example:
        >>> from pipeline import ViewSpec
        >>> from pipeline.modalities.images.augmentations import PadCrop
        >>> spec = ViewSpec(seed=1, pad_crop=PadCrop(padding=2), flip="random")
        >>> spec.canonical()["pad_crop"]
        {'padding': 2}
        >>> ViewSpec.from_canonical(spec.canonical()) == spec
        True
    """

    seed: int = 0
    pad_crop: PadCrop | None = None
    random_resized_crop: RandomResizedCrop | None = None
    flip: Literal["none", "random", "alternating"] = "none"
    rand_augment: RandAugment | None = None
    trivial_augment: TrivialAugment | None = None
    random_affine: RandomAffine | None = None
    color_jitter: ColorJitter | None = None
    grayscale: Grayscale | None = None
    posterize: Posterize | None = None
    solarize: Solarize | None = None
    sharpness: Sharpness | None = None
    autocontrast: Autocontrast | None = None
    equalize: Equalize | None = None
    own: OwnAugmentation | None = None
    random_erasing: RandomErasing | None = None
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None

    def __post_init__(self) -> None:
        require(self.flip in _FLIPS, "views.flip", quoted(self.flip), f"one of {', '.join(_FLIPS)}")
        require(0 <= self.seed < 1 << 64, "views.seed", self.seed, "0 to 2^64 - 1")
        for one, other, what in (
            ("pad_crop", "random_resized_crop", "one way to crop"),
            ("rand_augment", "trivial_augment", "one of the two"),
        ):
            both = getattr(self, one) is not None and getattr(self, other) is not None
            require(not both, "views", f"given both {one} and {other}", f"{what}; remove the other")
        if self.mixup is not None and self.cutmix is not None:
            shares = f"{self.mixup.probability:g} and {self.cutmix.probability:g}"
            require(
                self.mixup.probability + self.cutmix.probability <= 1,
                "views",
                f"given mixup and cutmix with probability {shares}",
                "a sum of at most 1, because a sample gets only one of them; set each to 0.5",
            )

    @property
    def mixes(self) -> bool:
        """Whether samples of a view are mixed with each other."""
        return self.mixup is not None or self.cutmix is not None

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""
        values = asdict(self)
        kept = {name: v for name, v in values.items() if name in _ALWAYS or v is not None}
        return {"semantics": SEMANTICS, **kept}

    @classmethod
    def from_canonical(cls, value: Mapping[str, Any]) -> ViewSpec:
        """Return the spec described by `canonical`.

        Raises:
            MismatchError: written by an incompatible version of this program.
        """
        given = set(value) - {"semantics"}
        unknown = sorted(given - {field.name for field in fields(cls)} | unknown_settings(_EVERY, value))
        if unknown or value.get("semantics") != SEMANTICS:
            semantics = f"semantics {quoted(value.get('semantics'))} of rendering"
            what = f"operation {brief(unknown[0])}" if unknown else semantics
            raise MismatchError(
                f"the views have {what}, but this program supports semantics {SEMANTICS} and the "
                f"operations {', '.join(AUGMENTATIONS)}; use the version that made them, or make a new "
                "dump"
            )
        require(type(value.get("seed", 0)) is int, "views.seed", quoted(value.get("seed")), "an integer")
        return cls(**{name: _augmentation(name, value[name]) for name in given})

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""
        return spec_digest(self.canonical())

    def described(self) -> Described:
        """Return the canonical form with its digest."""
        return Described(self.digest(), self.canonical())


def _augmentation(name: str, value: Any) -> Any:
    """Return a spec's field from its plain value."""
    if value is None or name not in (*AUGMENTATIONS, OwnAugmentation.name):
        return value
    if name == OwnAugmentation.name:
        require(isinstance(value, Mapping), name, quoted(value), "its settings")
        return OwnAugmentation.described(value)
    return operation(AUGMENTATIONS[name], value)
