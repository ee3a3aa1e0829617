"""The codec that a dump asks for: one by name, or the smallest within a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.codecs import CODECS, find_codec, is_own_codec
from pipeline.core.errors import ConfigError, did_you_mean, quoted

AUTO = "auto"
FEATURES = "features"
_DEFAULT_BUDGET = 1e-3
# Stands for the number of classes while it is unknown.
_MANY_CLASSES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec by name and the divergence that it may cause.

    Args:
        name: a codec's, or auto for the smallest that keeps the budget; user code is not run here.
        max_kl: the largest mean KL(teacher || decoded) at temperatures 1 and 4 in nats, measured on the
            pilot; None is 1e-3 for auto and features, and no limit for the others.
    """

    name: str
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and not 0 < self.max_kl <= 10:
            raise ConfigError(f"max_kl is {self.max_kl}; expected more than 0 and at most 10 nats")
        if self.name in (AUTO, FEATURES) or is_own_codec(self.name):
            return
        known = (AUTO, *CODECS)
        try:
            find_codec(self.name, _MANY_CLASSES)
        except ConfigError:
            raise ConfigError(
                f"codec is {quoted(self.name)}; expected one of {', '.join(known)}, or module:NAME of your "
                f"own{did_you_mean(self.name, known)}"
            ) from None

    @property
    def budget(self) -> float | None:
        """The largest mean KL, or None for no limit."""
        fitted = self.name in (AUTO, FEATURES)
        return _DEFAULT_BUDGET if fitted and self.max_kl is None else self.max_kl

    @property
    def needs_pilot(self) -> bool:
        """Whether the codec is known only after the teacher has run on some images."""
        return self.budget is not None

    def accepts(self, made_for: CodecSpec, codec: str) -> bool:
        """Whether a store with codec `codec`, made for the spec `made_for`, satisfies this spec."""
        same_budget = self.budget == made_for.budget
        if self.name == AUTO:
            return made_for.name == AUTO and same_budget
        return self.name == codec and (same_budget or self.budget is None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return self.name if self.budget is None else f"{self.name} (max_kl {self.budget:g})"
