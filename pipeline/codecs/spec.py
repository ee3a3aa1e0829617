"""The codec that a dump asks for: one by name, or the smallest within a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.codecs import CODECS, find_codec, is_own_codec
from pipeline.codecs.own_code import split_number
from pipeline.codecs.rule import Measures
from pipeline.codecs.vectors import STATES, require_bytes
from pipeline.core.errors import ConfigError, did_you_mean, quoted

AUTO = "auto"
FEATURES = "features"
DIGITS = "digits"
# These are fitted to a pilot, and so always have a budget.
_FITTED = (AUTO, FEATURES, DIGITS)
_DEFAULT_BUDGET = 1e-3
# Stands for the number of classes while it is unknown.
_MANY_CLASSES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec by name and the divergence that it may cause.

    Args:
        name: a codec's, or auto for the smallest that keeps the budget; user code is not run here.
        max_kl: of a softmax, the largest mean KL(teacher || decoded) at temperatures 1 and 4 in nats,
            measured on the pilot.
        max_error: of any other task, the largest mean of each of its divergences; see the task's table in
            `pipeline/tasks/README.md` for the units. Without a budget, auto, features and digits have 1e-3,
            the others no limit.
    """

    name: str
    max_kl: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and not 0 < self.max_kl <= 10:
            raise ConfigError(f"max_kl is {self.max_kl}; expected more than 0 and at most 10 nats")
        if self.max_error is not None and not 0 < self.max_error <= 10:
            raise ConfigError(f"max_error is {self.max_error}; expected more than 0 and at most 10")
        if self.max_kl is not None and self.max_error is not None:
            raise ConfigError("max_kl and max_error are both set; expected one; remove the other")
        if self.name in _FITTED or is_own_codec(self.name):
            return
        if self.vector is not None:
            require_bytes(*self.vector, _MANY_CLASSES)
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
    def vector(self) -> tuple[str, int] | None:
        """Kind and bytes of a codec of whole vectors, e.g. ("pq", 16) for pq-16; None for others."""
        stem, number = split_number(self.name)
        return (stem, number) if number is not None and stem in STATES else None

    @property
    def budget(self) -> float | None:
        """The largest mean of a divergence, or None for no limit."""
        asked = self.max_error if self.max_kl is None else self.max_kl
        return _DEFAULT_BUDGET if self.name in _FITTED and asked is None else asked

    @property
    def needs_pilot(self) -> bool:
        """Whether the codec is known only after the teacher has run on some images."""
        return self.budget is not None or self.vector is not None

    def accepts(self, made_for: CodecSpec, codec: str) -> bool:
        """Whether a store with codec `codec`, made for the spec `made_for`, satisfies this spec."""
        same_budget = self.budget == made_for.budget
        if self.name == AUTO:
            return made_for.name == AUTO and same_budget
        return self.name == codec and (same_budget or self.budget is None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, without `max_error` if it is not set."""
        plain = asdict(self)
        return plain if self.max_error is not None else {k: v for k, v in plain.items() if k != "max_error"}

    def require_link(self, measures: Measures) -> None:
        """Refuse the budget of another kind of outputs.

        Raises:
            ConfigError: a budget in nats for absolute outputs, or `max_error` for a softmax.
        """
        if measures.is_absolute and self.max_kl is not None:
            raise ConfigError(
                f"max_kl is {self.max_kl:g}, a divergence of one softmax; the outputs of this task have "
                f"{' and '.join(measures.divergences)}; expected max_error; rename it"
            )
        if not measures.is_absolute and self.max_error is not None:
            raise ConfigError(
                f"max_error is {self.max_error:g}; the outputs of this task are one softmax; expected "
                "max_kl, in nats; rename it"
            )

    def __str__(self) -> str:
        return self.under(absolute=self.max_error is not None)

    def under(self, *, absolute: bool) -> str:
        """Return the codec with its budget in words, e.g. `auto (max_kl 0.001)`.

        Args:
            absolute: whether the outputs are absolute, so that a default budget is `max_error`.
        """
        key = "max_error" if absolute else "max_kl"
        return self.name if self.budget is None else f"{self.name} ({key} {self.budget:g})"
