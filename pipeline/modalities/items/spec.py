"""The views of a history: the augmentation as data, with a canonical form and a digest.

Names and meanings follow CL4SRec (Xie et al., arXiv 2010.14395). `operations.py` draws and carries them
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from pipeline.core.errors import quoted
from pipeline.modalities.preprocessing import UsualViews
from pipeline.views.operations import Augmentation, Bounds, plain_settings, require, spec_values

# Raise it when a spec would render different histories; part of every store's fingerprint.
SEMANTICS = 1
_PLACES = ("random", "end")
_WAYS = ("all", "one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Augmentation):
    """Keep a span of consecutive items.

    Args:
        scale: smallest and largest share of the items that the span holds, in (0, 1]. CL4SRec: 0.6.
        place: random, as in CL4SRec, or end: the span ends with the latest item.
    """

    name: ClassVar[str] = "crop"

    scale: Bounds = (0.6, 1.0)
    place: str = "random"

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 < low <= high <= 1, "crop.scale", list(self.scale), "two shares, 0 < low <= high <= 1")
        require(self.place in _PLACES, "crop.place", quoted(self.place), f"one of {', '.join(_PLACES)}")
        object.__setattr__(self, "scale", (float(low), float(high)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask(Augmentation):
    """Hide items behind a mask; at least one stays.

    Args:
        probability: of each item, in [0, 1]. CL4SRec hides 0.3 to 0.5 of them.
    """

    name: ClassVar[str] = "mask"

    probability: float = 0.3

    def __post_init__(self) -> None:
        self._require("probability", 0 <= self.probability <= 1, "0 to 1")
        self._normalise()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Augmentation):
    """Shuffle a span of consecutive items.

    Args:
        share: of the items that the span holds, in [0, 1]. CL4SRec: 0.6.
    """

    name: ClassVar[str] = "reorder"

    share: float = 0.6

    def __post_init__(self) -> None:
        self._require("share", 0 <= self.share <= 1, "0 to 1")
        self._normalise()


Operation = Crop | Mask | Reorder
OPERATIONS: Mapping[str, type[Operation]] = {kind.name: kind for kind in (Crop, Mask, Reorder)}
_KINDS: Mapping[str, type[Augmentation]] = dict(OPERATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsViews(UsualViews):
    """How view number v of a history is drawn: a pure function of (seed, v, sample key, item number).

    Operations are applied in the order in which they stand here, each where it is not None.

    Args:
        seed: random seed of all draws, 64-bit unsigned.
        apply: all operations, or one of them per history and view, as in CL4SRec.
        crop: a span of consecutive items.
        mask: hidden items.
        reorder: a shuffled span.

    Example:
        >>> spec = ItemsViews(seed=1, mask=Mask(probability=0.2))
        >>> spec.canonical()
        {'semantics': 1, 'seed': 1, 'apply': 'all', 'mask': {'probability': 0.2}}
        >>> ItemsViews.from_canonical(spec.canonical()) == spec
        True
    """

    mixes: ClassVar[bool] = False

    seed: int = 0
    apply: Literal["all", "one"] = "all"
    crop: Crop | None = None
    mask: Mask | None = None
    reorder: Reorder | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 64, "views.seed", self.seed, "0 to 2^64 - 1")
        require(self.apply in _WAYS, "views.apply", quoted(self.apply), f"one of {', '.join(_WAYS)}")

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations that are set, in order."""
        given = (self.crop, self.mask, self.reorder)
        return tuple(operation for operation in given if operation is not None)

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""
        given = {name: plain_settings(value) for name, value in asdict(self).items() if value is not None}
        return {"semantics": SEMANTICS, **given}

    @classmethod
    def from_canonical(cls, value: Mapping[str, Any]) -> ItemsViews:
        """Return the spec described by `canonical`.

        Raises:
            MismatchError: written by an incompatible version of this program.
            ConfigError: a value has a wrong type or range.
        """
        names = {field.name for field in fields(cls)}
        return cls(**spec_values(value, _KINDS, names, SEMANTICS))
