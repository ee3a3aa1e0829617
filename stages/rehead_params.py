"""Frozen, validated dataclasses of `reheads` and `probes` in `params.yaml`: dumps with another head."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codecs.spec import FEATURES, CodecSpec
from pipeline.core.errors import ConfigError
from pipeline.dump.rehead import PROBE, HeadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ReheadParams:
    """A dump with another last layer; no teacher runs, and no shard is copied.

    Args:
        of: name of a dump whose codec keeps features, or of embeddings.
        head: path of a file: weights or class vectors (.npz, .safetensors), or a class map (.yaml, .json).
        max_kl: error budget of classes, as of a dump; None for 1e-3 nats.
        max_error: error budget of other tasks; None for 1e-3.

    """

    of: str
    head: str
    max_kl: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.head == PROBE:
            raise ConfigError(f"head is {PROBE}; expected a file; a probe is an entry of `probes`")
        self.head_spec()

    def head_spec(self) -> HeadSpec:
        """Return the head's origin and its budget."""
        return HeadSpec(source=self.head, budget=_budget(self.max_kl, self.max_error))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeParams:
    """A dump with a last layer that is fitted to the data's labels on cached features.

    Args:
        of: name of a dump whose codec keeps features, or of embeddings.
        penalty: of the squared weights, for features of deviation 1; None chooses among 1e-2, 1e-3 and 1e-4
            by the validation samples.
        max_kl: error budget of classes, as of a dump; None for 1e-3 nats.
        max_error: error budget of other tasks; None for 1e-3.

    """

    of: str
    penalty: float | None = None
    max_kl: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None and not 0 < self.penalty <= 1e6:
            raise ConfigError(f"penalty is {self.penalty}; expected more than 0 and at most 1e6")
        self.head_spec()

    def head_spec(self) -> HeadSpec:
        """Return the probe's penalty and its budget."""
        budget = _budget(self.max_kl, self.max_error)
        return HeadSpec(source=PROBE, budget=budget, penalty=self.penalty)


def _budget(max_kl: float | None, max_error: float | None) -> CodecSpec:
    return CodecSpec(name=FEATURES, max_kl=max_kl, max_error=max_error)
