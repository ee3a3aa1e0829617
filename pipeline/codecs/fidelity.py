"""The cost of a codec: divergences between a teacher's outputs and the decoded ones.

A task's rule defines the divergences. A dump decodes every block again and compares. Sums add up over
blocks, so shards written by different runs or processes give one figure. The 99th percentile comes from a
histogram with sixteen bins per octave. It is the upper edge of its bin: at most 4.5 % above the exact one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.rule import Measures, Rule, histogram_key, sort_keys

_BINS_AN_OCTAVE = 16
_LOWEST = 2.0**-60
# Beyond this bin, 2 to the power of its edge is no float64.
HIGHEST_BIN = 1023 * _BINS_AN_OCTAVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A divergence over samples: its sum and its histogram.

    Args:
        total: the sum over samples.
        histogram: bin -> number of samples.
    """

    total: float = 0.0
    histogram: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values_B: NDArray[np.float64]) -> Divergence:
        """Add up the divergences of rows."""
        # fsum is exact: the sum depends neither on the rows' order nor on the batch size.
        return cls(total=math.fsum(values_B), histogram=_histogram(values_B))

    @classmethod
    def sum(cls, parts: Iterable[Divergence]) -> Divergence:
        """Add up blocks, in the given order."""
        parts = list(parts)
        counts: Counter[int] = Counter()
        for part in parts:
            counts.update(part.histogram)
        return cls(total=math.fsum(part.total for part in parts), histogram=dict(sorted(counts.items())))

    @property
    def p99(self) -> float:
        """The 99th percentile over samples; 0 without samples."""
        seen, samples = 0, sum(self.histogram.values())
        for bin_, count in self.histogram.items():
            seen += count
            if seen >= 0.99 * samples:
                return float(2.0 ** ((bin_ + 1) / _BINS_AN_OCTAVE))
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Sums over samples of one or more blocks.

    Args:
        samples: number of samples.
        divergences: by name.
        agreement: name of the answer that is compared, e.g. top1.
        same: number of samples with the same answer after decoding.
    """

    samples: int
    divergences: Mapping[str, Divergence]
    agreement: str
    same: int

    @classmethod
    def measure(cls, rule: Rule, outputs_BC: Tensor, decoded_BC: Tensor) -> Fidelity:
        """Compare a block's outputs with the decoded ones, and wait for their device."""
        divergences, same = rule.diverge(outputs_BC, decoded_BC), rule.agree(outputs_BC, decoded_BC)
        return cls.of(rule.measures, divergences.cpu().numpy(), same.cpu().numpy())

    @classmethod
    def of(
        cls, measures: Measures, divergences_BK: NDArray[np.float64], same_B: NDArray[np.bool_]
    ) -> Fidelity:
        """Add up rows on the host, measured by a rule of these measures."""
        columns = zip(measures.divergences, divergences_BK.T, strict=True)
        return cls(
            samples=len(divergences_BK),
            divergences={name: Divergence.of(column) for name, column in columns},
            agreement=measures.agreement,
            same=int(same_B.sum()),
        )

    @classmethod
    def total(cls, measures: Measures, parts: Iterable[Fidelity]) -> Fidelity:
        """Add up blocks of the same measures, in the given order."""
        parts = list(parts)
        return cls(
            samples=sum(part.samples for part in parts),
            divergences={
                name: Divergence.sum(part.divergences[name] for part in parts)
                for name in measures.divergences
            },
            agreement=measures.agreement,
            same=sum(part.same for part in parts),
        )

    @property
    def measures(self) -> Measures:
        """The names of the figures."""
        return Measures(divergences=tuple(self.divergences), agreement=self.agreement)

    def mean(self, divergence: str) -> float:
        """Return the mean of a divergence; 0 without samples."""
        return self.divergences[divergence].total / max(1, self.samples)

    @property
    def agreed(self) -> float:
        """The share of samples with the same answer after decoding; 0 without samples."""
        return self.same / max(1, self.samples)

    def means(self) -> dict[str, float]:
        """Return the mean of each divergence, under the keys of `summary`."""
        return {f"{name}_mean": self.mean(name) for name in self.divergences}

    def summary(self) -> dict[str, float]:
        """Return the figures that `pipeline inspect --json` prints."""
        first, *others = self.divergences
        return {
            f"{first}_mean": self.mean(first),
            f"{first}_p99": self.divergences[first].p99,
            **{f"{name}_mean": self.mean(name) for name in others},
            f"{self.agreement}_agreement": self.agreed,
        }

    @property
    def worst(self) -> float:
        """The largest mean over the divergences."""
        return max(part.total for part in self.divergences.values()) / self.samples

    def within(self, budget: float) -> bool:
        """Whether the mean of each divergence is at most `budget`."""
        return all(part.total <= budget * self.samples for part in self.divergences.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        return {
            "samples": self.samples,
            **{name: part.total for name, part in self.divergences.items()},
            self.measures.same: self.same,
            **{
                histogram_key(name): {str(bin_): count for bin_, count in part.histogram.items()}
                for name, part in self.divergences.items()
            },
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Fidelity:
        """Return the sums that `to_dict` described, of any measures.

        Raises:
            ValueError: the sums contradict each other.
        """
        sorted_ = sort_keys(value)
        samples, totals, histograms = (sorted_[k] for k in ("samples", "divergences", "histograms"))
        ((agreement, same),) = sorted_["agreement"].items()
        if sorted(map(histogram_key, totals)) != sorted(histograms):
            raise ValueError(f"histograms must be {', '.join(totals)}")
        if same > samples:
            raise ValueError(f"{same} unchanged answers for {samples} samples")
        divergences = {}
        for name, total in totals.items():
            found = histograms[histogram_key(name)]
            # JSON sorts keys as texts, "-9" after "-10"; a percentile needs ascending bins.
            counts = dict(sorted((int(bin_), count) for bin_, count in found.items()))
            if sum(counts.values()) != samples or max(map(abs, counts), default=0) > HIGHEST_BIN:
                raise ValueError(f"a histogram does not count its {samples} samples")
            divergences[name] = Divergence(total=total, histogram=counts)
        return cls(samples=samples, divergences=divergences, agreement=agreement, same=same)


def _histogram(values_B: NDArray[np.float64]) -> dict[int, int]:
    bins = np.floor(np.log2(np.maximum(values_B, _LOWEST)) * _BINS_AN_OCTAVE).astype(np.int64)
    values, counts = np.unique(bins, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
