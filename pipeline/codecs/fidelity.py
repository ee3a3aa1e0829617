"""What a codec costs: the divergence between a teacher's logits and what the store gives back.

Every block of a dump is decoded again and compared; blocks add up, so that shards written by different
runs or processes give one figure. The 99th percentile comes from a histogram with sixteen bins an
octave, and is the upper edge of its bin: at most 4.5 % above the exact one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_BINS_AN_OCTAVE = 16
_LOWEST_KL = 2.0**-60
_TEMPERATURES = (1.0, 4.0)
# Beyond it 2 to the power of a bin's edge is no float64.
_HIGHEST_BIN = 1023 * _BINS_AN_OCTAVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Sums over samples of one or more blocks.

    Args:
        samples: how many.
        kl_t1, kl_t4: sums of KL(teacher || decoded) at temperatures 1 and 4, in nats.
        same_top1: samples whose first class survived.
        histogram_t1, histogram_t4: bin of KL -> samples.
    """

    samples: int = 0
    kl_t1: float = 0.0
    kl_t4: float = 0.0
    same_top1: int = 0
    histogram_t1: Mapping[int, int] = field(default_factory=dict)
    histogram_t4: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def measure(cls, logits_BC: Tensor, decoded_BC: Tensor) -> Fidelity:
        """Compare a block's logits with what decoding gives."""
        kl, same = divergences(logits_BC, decoded_BC), same_top1(logits_BC, decoded_BC)
        return cls.of(kl.cpu().numpy(), same.cpu().numpy())

    @classmethod
    def of(cls, kl_B2: NDArray[np.float64], same_top1_B: NDArray[np.bool_]) -> Fidelity:
        """Add up rows: `divergences` and `same_top1` of them, on the host."""
        kl_t1, kl_t4 = kl_B2.T
        # fsum, so that no order of rows nor size of batches shows in a sum.
        return cls(
            samples=len(kl_B2),
            kl_t1=math.fsum(kl_t1),
            kl_t4=math.fsum(kl_t4),
            same_top1=int(same_top1_B.sum()),
            histogram_t1=_histogram(kl_t1),
            histogram_t4=_histogram(kl_t4),
        )

    @classmethod
    def total(cls, parts: Iterable[Fidelity]) -> Fidelity:
        """Add blocks up, in the given order."""
        parts = list(parts)
        return cls(
            samples=sum(part.samples for part in parts),
            kl_t1=math.fsum(part.kl_t1 for part in parts),
            kl_t4=math.fsum(part.kl_t4 for part in parts),
            same_top1=sum(part.same_top1 for part in parts),
            histogram_t1=_sum(part.histogram_t1 for part in parts),
            histogram_t4=_sum(part.histogram_t4 for part in parts),
        )

    def summary(self) -> dict[str, float]:
        """Return the figures that `pipeline inspect --json` prints."""
        count = max(1, self.samples)
        return {
            "kl_t1_mean": self.kl_t1 / count,
            "kl_t1_p99": _percentile(self.histogram_t1, 0.99),
            "kl_t4_mean": self.kl_t4 / count,
            "top1_agreement": self.same_top1 / count,
        }

    @property
    def kl_t4_p99(self) -> float:
        """The 99th percentile of KL at temperature 4, in nats."""
        return _percentile(self.histogram_t4, 0.99)

    @property
    def worst_kl(self) -> float:
        """The larger of the mean KLs at both temperatures, in nats."""
        return max(self.kl_t1, self.kl_t4) / self.samples

    def within(self, max_kl: float) -> bool:
        """Whether the mean KL at both temperatures is at most this."""
        return max(self.kl_t1, self.kl_t4) <= max_kl * self.samples

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        return {
            "samples": self.samples,
            "kl_t1": self.kl_t1,
            "kl_t4": self.kl_t4,
            "same_top1": self.same_top1,
            "histogram_t1": {str(bin_): count for bin_, count in self.histogram_t1.items()},
            "histogram_t4": {str(bin_): count for bin_, count in self.histogram_t4.items()},
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Fidelity:
        """Return the sums that `to_dict` described.

        Raises:
            ValueError: they do not go together.
        """
        histograms = {
            key: {int(bin_): count for bin_, count in value[key].items()}
            for key in ("histogram_t1", "histogram_t4")
        }
        total = cls(**{**value, **histograms})
        if total.same_top1 > total.samples:
            raise ValueError(f"{total.same_top1} first classes of {total.samples} samples survived")
        for histogram in (total.histogram_t1, total.histogram_t4):
            if (
                sum(histogram.values()) != total.samples
                or max(map(abs, histogram), default=0) > _HIGHEST_BIN
            ):
                raise ValueError(f"a histogram is not of its {total.samples} samples")
        return total


def divergences(logits_BC: Tensor, decoded_BC: Tensor) -> Tensor:
    """Return KL(teacher || decoded) in nats (B, 2) float64 at temperatures 1 and 4, on the rows' device."""
    teacher, decoded = logits_BC.double(), decoded_BC.double()
    return torch.stack([_divergence(teacher / t, decoded / t) for t in _TEMPERATURES], 1)


def same_top1(logits_BC: Tensor, decoded_BC: Tensor) -> Tensor:
    """Return whether each row's first class survived (B,), on the rows' device."""
    return logits_BC.argmax(1) == decoded_BC.argmax(1)


def _histogram(kl_B: NDArray[np.float64]) -> dict[int, int]:
    bins = np.floor(np.log2(np.maximum(kl_B, _LOWEST_KL)) * _BINS_AN_OCTAVE).astype(np.int64)
    values, counts = np.unique(bins, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _sum(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for histogram in histograms:
        counts.update(histogram)
    return dict(sorted(counts.items()))


def _percentile(histogram: Mapping[int, int], share: float) -> float:
    seen, samples = 0, sum(histogram.values())
    for bin_, count in histogram.items():
        seen += count
        if seen >= share * samples:
            return float(2.0 ** ((bin_ + 1) / _BINS_AN_OCTAVE))
    return 0.0


def _divergence(teacher: Tensor, decoded: Tensor) -> Tensor:
    log_teacher, log_decoded = F.log_softmax(teacher, 1), F.log_softmax(decoded, 1)
    # Rounding can leave a sum of -1e-17, which is no divergence.
    return F.kl_div(log_decoded, log_teacher, log_target=True, reduction="none").sum(1).clamp(min=0)
