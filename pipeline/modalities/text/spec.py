"""The views of a text: the augmentation as data, with a canonical form and a digest.

Owns the operations, their ranges and defaults. `operations.py` draws and carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from pipeline.core.errors import ConfigError, MismatchError, brief, quoted
from pipeline.modalities.preprocessing import UsualViews

# Raise it when a spec would render different texts; part of every store's fingerprint.
SEMANTICS = 1


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuse a value out of range.

    Raises:
        ConfigError: naming the value and the expected range.
    """
    if not holds:
        raise ConfigError(f"{name} is {value}; expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop:
    """Keep a random span of consecutive words (nlpaug's RandomWordAug cuts such a span out).

    Args:
        scale: smallest and largest share of the words that the span holds, in (0, 1].
    """

    name: ClassVar[str] = "random_crop"

    scale: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        require(
            0 < low <= high <= 1, "random_crop.scale", list(self.scale), "two shares, 0 < low <= high <= 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDeletion:
    """Leave out words; at least one stays (EDA, Wei and Zou, arXiv 1901.11196: 0.1).

    Args:
        probability: of each word, in [0, 1].
    """

    name: ClassVar[str] = "random_deletion"

    probability: float = 0.1

    def __post_init__(self) -> None:
        _require_probability(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSwap:
    """Exchange two random words, several times (EDA, arXiv 1901.11196: a tenth of the words).

    Args:
        share: number of exchanges as a share of the number of words, in [0, 1].
    """

    name: ClassVar[str] = "random_swap"

    share: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "random_swap.share", self.share, "0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Hide words behind the tokenizer's mask, or its unknown token (BERT, arXiv 1810.04805: 0.15).

    Args:
        probability: of each word, in [0, 1].
    """

    name: ClassVar[str] = "mask"

    probability: float = 0.15

    def __post_init__(self) -> None:
        _require_probability(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CharacterNoise:
    """Make one typing error in a word: leave out, double, exchange or replace a character.

    As nlpaug's RandomCharAug, but replacements come from the word itself, so any script is served.

    Args:
        probability: of each word, in [0, 1].
    """

    name: ClassVar[str] = "character_noise"

    probability: float = 0.1

    def __post_init__(self) -> None:
        _require_probability(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Write words in lower case, in upper case, or with a capital letter, a third each.

    Args:
        probability: of each word, in [0, 1].
    """

    name: ClassVar[str] = "case"

    probability: float = 0.1

    def __post_init__(self) -> None:
        _require_probability(self)


Operation = RandomCrop | RandomDeletion | RandomSwap | Mask | CharacterNoise | Case
OPERATIONS: Mapping[str, type[Operation]] = {
    kind.name: kind for kind in (RandomCrop, RandomDeletion, RandomSwap, Mask, CharacterNoise, Case)
}


def _require_probability(operation: Any) -> None:
    value = operation.probability
    require(0 <= value <= 1, f"{operation.name}.probability", value, "0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextViews(UsualViews):
    """How view number v of a text is drawn: a pure function of (seed, v, sample key, word number).

    Operations are applied in the order in which they stand here, each where it is not None.

    Args:
        seed: random seed of all draws, 64-bit unsigned.
        random_crop: a span of consecutive words.
        random_deletion: words left out.
        random_swap: words exchanged.
        mask: words hidden.
        character_noise: words with a typing error.
        case: words in another case.

    Example:
        >>> from pipeline.modalities.text.spec import RandomDeletion, TextViews
        >>> spec = TextViews(seed=1, random_deletion=RandomDeletion(probability=0.2))
        >>> spec.canonical()["random_deletion"]
        {'probability': 0.2}
        >>> TextViews.from_canonical(spec.canonical()) == spec
        True
    """

    mixes: ClassVar[bool] = False

    seed: int = 0
    random_crop: RandomCrop | None = None
    random_deletion: RandomDeletion | None = None
    random_swap: RandomSwap | None = None
    mask: Mask | None = None
    character_noise: CharacterNoise | None = None
    case: Case | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 64, "views.seed", self.seed, "0 to 2^64 - 1")

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"semantics": SEMANTICS, **given}

    @classmethod
    def from_canonical(cls, value: Mapping[str, Any]) -> TextViews:
        """Return the spec described by `canonical`.

        Raises:
            MismatchError: written by an incompatible version of this program.
            ValueError: not the description of a spec.
        """
        given = {name: inner for name, inner in value.items() if name != "semantics"}
        unknown = sorted(set(given) - {field.name for field in fields(cls)} | _unknown_settings(given))
        if unknown or value.get("semantics") != SEMANTICS:
            what = (
                f"operation {brief(unknown[0])}"
                if unknown
                else f"semantics {quoted(value.get('semantics'))}"
            )
            raise MismatchError(
                f"the views have {what}; this program knows semantics {SEMANTICS} and the operations "
                f"{', '.join(OPERATIONS)}; use the version that made them, or make a new dump"
            )
        if type(given.get("seed", 0)) is not int:
            raise ValueError(f"views.seed is {quoted(given['seed'])}; expected an integer")
        return cls(**{name: _operation(name, inner) for name, inner in given.items()})


def _unknown_settings(value: Mapping[str, Any]) -> set[str]:
    return {
        f"{name}.{setting}"
        for name, kind in OPERATIONS.items()
        if isinstance(value.get(name), Mapping)
        for setting in set(value[name]) - {field.name for field in fields(kind)}
    }


def _operation(name: str, value: Any) -> Any:
    """Return a spec's field from its plain value.

    Raises:
        ValueError: not the settings of this operation.
    """
    if name not in OPERATIONS:
        return value
    numbers = value.values() if isinstance(value, Mapping) else [None]
    for number in numbers:
        parts = number if isinstance(number, list | tuple) else [number]
        if not all(type(part) in (int, float) for part in parts):
            raise ValueError(f"{name} is {quoted(value)}; expected its settings, numbers")
    kind: type[Any] = OPERATIONS[name]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
