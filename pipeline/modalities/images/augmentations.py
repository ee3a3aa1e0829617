"""The augmentations of a view, each with its ranges: one frozen class per operation.

Names and defaults follow torchvision. This module owns the range of each setting; `spec.py` owns
combinations. To add one, write a class here, a line in `spec.py` and its draws. Or name a function of your
package as the view's `own`: see `own_code.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from pipeline.core.errors import quoted
from pipeline.core.own_code import is_own
from pipeline.core.trust import is_plain
from pipeline.views.operations import Augmentation, Bounds, Mixing, Sometimes, require

# User augmentations named in this process, by params.yaml or in Python: `module:NAME` to their settings.
_NAMED: dict[str, list[Mapping[str, Any]]] = {}
# `module` or `module:NAME` that the user trusts with any settings.
_TRUSTED: set[str] = set()


def trust_augmentations(code: Iterable[str]) -> None:
    """Let headers name augmentations of these modules, or `module:NAME`, with any settings."""
    _TRUSTED.update(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class PadCrop(Augmentation):
    """Shift the centred square by up to `padding` source pixels each way; outside is black.

    Args:
        padding: largest shift in pixels of the source image, 1 to 64.

    """

    name: ClassVar[str] = "pad_crop"
    padding: int = 4

    def __post_init__(self) -> None:
        self._require("padding", 1 <= self.padding <= 64, "1 to 64 pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop(Augmentation):
    """A box of random area and aspect ratio, as torchvision's transform of that name draws it.

    Args:
        scale: smallest and largest share of the image's area, 0 < low <= high <= 1.
        ratio: smallest and largest width / height, log-uniform, 0 < low <= high.

    """

    name: ClassVar[str] = "random_resized_crop"
    scale: Bounds = (0.08, 1.0)
    ratio: Bounds = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        self._require_bounds("scale", 0, 1)
        self._require_bounds("ratio", 0, 100)
        self._normalise()


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment(Augmentation):
    """`num_ops` random operations, one after the other, all of one magnitude.

    Args:
        num_ops: number of operations, 1 to 8.
        magnitude: strength, 0 to 30 (strongest).

    Source: Cubuk et al., arXiv 1909.13719; torchvision's 14 operations and their ranges.
    """

    name: ClassVar[str] = "rand_augment"
    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        self._require("num_ops", 1 <= self.num_ops <= 8, "1 to 8 operations")
        self._require("magnitude", 0 <= self.magnitude <= 30, "0 to 30")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrivialAugment(Augmentation):
    """One random operation of random magnitude, from the wide space.

    Args:
        num_magnitude_bins: number of magnitudes to draw from, 2 to 256.

    Source: Müller and Hutter, arXiv 2103.10158; torchvision's TrivialAugmentWide.
    """

    name: ClassVar[str] = "trivial_augment"
    num_magnitude_bins: int = 31

    def __post_init__(self) -> None:
        self._require("num_magnitude_bins", 2 <= self.num_magnitude_bins <= 256, "2 to 256")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomAffine(Augmentation):
    """Rotation, translation, scaling and shear about the centre, bilinear; outside is black.

    Args:
        degrees: largest rotation either way in degrees, 0 to 180.
        translate: largest shift as a share of the width and of the height, each 0 to 1.
        scale: smallest and largest scale factor, 0.1 to 10.
        shear: largest shear of x and of y in degrees, each 0 to 60.
        probability: share of the samples, in (0, 1].

    """

    name: ClassVar[str] = "random_affine"
    degrees: float = 0.0
    translate: Bounds = (0.0, 0.0)
    scale: Bounds = (1.0, 1.0)
    shear: Bounds = (0.0, 0.0)
    probability: float = 1.0

    def __post_init__(self) -> None:
        self._require("degrees", 0 <= self.degrees <= 180, "0 to 180")
        self._require("translate", all(0 <= t <= 1 for t in self.translate), "[x, y], each 0 to 1")
        low, high = self.scale
        self._require("scale", 0.1 <= low <= high <= 10, "[low, high] with 0.1 <= low <= high <= 10")
        self._require("shear", all(0 <= s <= 60 for s in self.shear), "[x, y], each 0 to 60 degrees")
        self._require_share()
        self._normalise()
        idle = not self.degrees and not any((*self.translate, *self.shear)) and self.scale == (1, 1)
        require(not idle, self.name, "without effect", "degrees, translate, scale or shear; set one")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue, in random order.

    Args:
        brightness, contrast, saturation: x of a factor drawn from max(0, 1 - x) to 1 + x, 0 to 8.
        hue: largest shift either way in turns of the colour circle, 0 to 0.5.
        probability: share of the samples, in (0, 1].

    """

    name: ClassVar[str] = "color_jitter"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for factor in ("brightness", "contrast", "saturation"):
            self._require(factor, 0 <= getattr(self, factor) <= 8, "0 to 8")
        self._require("hue", 0 <= self.hue <= 0.5, "0 to 0.5")
        self._require_share()
        self._normalise()
        idle = not any((self.brightness, self.contrast, self.saturation, self.hue))
        require(not idle, self.name, "without effect", "brightness, contrast, saturation or hue; set one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grayscale(Sometimes):
    """Remove the colour."""

    name: ClassVar[str] = "grayscale"
    probability: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterize(Sometimes):
    """Keep the highest bits of each pixel.

    Args:
        bits: number of bits kept, 0 to 8.

    """

    name: ClassVar[str] = "posterize"
    bits: int = 4

    def __post_init__(self) -> None:
        self._require("bits", 0 <= self.bits <= 8, "0 to 8")
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solarize(Sometimes):
    """Invert pixels at or above a threshold.

    Args:
        threshold: grey level, 0 to 255.

    """

    name: ClassVar[str] = "solarize"
    threshold: int = 128

    def __post_init__(self) -> None:
        self._require("threshold", 0 <= self.threshold <= 255, "0 to 255")
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness(Sometimes):
    """Blur or sharpen.

    Args:
        factor: 0 blurs, 1 changes nothing, 2 sharpens; 0 to 9.

    """

    name: ClassVar[str] = "sharpness"
    factor: float = 2.0

    def __post_init__(self) -> None:
        self._require("factor", 0 <= self.factor <= 9, "0 to 9")
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Autocontrast(Sometimes):
    """Stretch each channel to the whole range."""

    name: ClassVar[str] = "autocontrast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalize(Sometimes):
    """Flatten each channel's histogram."""

    name: ClassVar[str] = "equalize"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAugmentation(Sometimes):
    """Apply the user's own function of an image's pixels: see `own_code.py`.

    Making one names its code, which may then run in this process; `described` makes one that does not.

    Args:
        code: the function, `package.module:NAME`.
        version: version of the function, at least 0; views of different versions are different views.
        settings: keyword arguments of the function, as plain values.
        probability: share of the samples, in (0, 1].

    """

    name: ClassVar[str] = "own"
    code: str
    version: int
    settings: dict[str, Any] = field(default_factory=dict)
    probability: float = 1.0

    def __post_init__(self) -> None:
        self._check()
        given = _NAMED.setdefault(self.code, [])
        if self.settings not in given:
            given.append(self.settings)

    @property
    def may_run(self) -> bool:
        """Whether the user trusts the code, or named it: with these settings, or numbers and words."""
        if not _TRUSTED.isdisjoint({self.code, self.code.partition(":")[0]}):
            return True
        given = _NAMED.get(self.code, [])
        return self.settings in given or (bool(given) and is_plain(self.settings))

    @classmethod
    def described(cls, plain: Mapping[str, Any]) -> OwnAugmentation:
        """Return the augmentation described in a header, without naming its code.

        Raises:
            ConfigError: a value has a wrong type or range.
        """
        kinds = {"code": str, "version": int, "settings": dict, "probability": float}
        for setting, kind in kinds.items():
            value = plain.get(setting)
            require(
                type(value) is kind, f"own.{setting}", quoted(value), f"a value of type {kind.__name__}"
            )
        made = object.__new__(cls)
        for setting in kinds:
            object.__setattr__(made, setting, plain[setting])
        made._check()
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle whether the code was named, e.g. for worker processes."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return _own_again, (values, self.may_run)

    def _check(self) -> None:
        require(is_own(self.code), "own.code", quoted(self.code), "package.module:NAME of your code")
        self._require("version", self.version >= 0, "at least 0")
        require(_is_json(self.settings), "own.settings", quoted(self.settings), "plain, finite values")
        Sometimes.__post_init__(self)


def _own_again(values: Mapping[str, Any], named: bool) -> OwnAugmentation:
    return OwnAugmentation(**values) if named else OwnAugmentation.described(values)


def _is_json(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomErasing(Augmentation):
    """Paint over a random box.

    Args:
        probability: share of the samples, in (0, 1].
        scale: smallest and largest share of the area.
        ratio: smallest and largest height / width, log-uniform.
        value: grey level of the box, 0 to 255.

    Source: Zhong et al., arXiv 1708.04896.
    """

    name: ClassVar[str] = "random_erasing"
    probability: float = 0.5
    scale: Bounds = (0.02, 0.33)
    ratio: Bounds = (0.3, 3.3)
    value: int = 0

    def __post_init__(self) -> None:
        self._require_share()
        self._require_bounds("scale", 0, 1)
        self._require_bounds("ratio", 0, 100)
        self._require("value", 0 <= self.value <= 255, "0 to 255")
        self._normalise()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixup(Mixing):
    """Blend with another image of the same view: lambda of one, 1 - lambda of the other.

    Source: Zhang et al., arXiv 1710.09412.
    """

    name: ClassVar[str] = "mixup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutmix(Mixing):
    """Paste a box of another image of the same view.

    The box has 1 - lambda of the area before it is cut at the edges.

    Source: Yun et al., arXiv 1905.04899.
    """

    name: ClassVar[str] = "cutmix"
