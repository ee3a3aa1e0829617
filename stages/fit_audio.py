"""Choose the parameters for a folder of sounds; `fit.py` does so for photographs, and renders the text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.fit import schedule
from stages.render import quoted_yaml

# Speech is understood at 8 kHz and hardly gains above 16.
_RATES = (8_000, 16_000)
_LONGEST_SECONDS, _SHORTEST_SECONDS = 10.0, 0.1
# Below this, a fifth of the clips would choose an epoch by chance, and training needs them more.
_CHOOSING, _FEW, _MANY = 250, 1_000, 50_000
# Below this, accuracy on held-out clips has a standard error of 4 points or more.
_TELLING = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSurvey:
    """Counts and lengths of a folder of sounds.

    Args:
        source: value of `data.source`.
        watch: folder that DVC watches.
        classes: C, the number of classes.
        train, validation, test: clips per split; validation is None if it is drawn from train.
        headers: (n, 2) samples and samples per second of some clips, evenly spread; n may be 0.
    """

    source: str
    watch: str
    classes: int
    train: int
    validation: int | None
    test: int
    headers: NDArray[np.int64]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Lengths (n,) in seconds; a single 1 if none is known."""
        return self.headers[:, 0] / self.headers[:, 1] if len(self.headers) else np.ones(1)

    @property
    def rate(self) -> int:
        """The most usual number of samples per second; 16,000 if none is known."""
        if not len(self.headers):
            return _RATES[-1]
        rates, counts = np.unique(self.headers[:, 1], return_counts=True)
        return int(rates[counts.argmax()])

    def __str__(self) -> str:
        """Return one line: classes, clips per split, lengths, rate."""
        low, middle, high = np.quantile(self.seconds, [0, 0.5, 1])
        validation = "" if self.validation is None else f", validation {self.validation:,}"
        return (
            f"{self.classes} classes; train {self.train:,}{validation}, test {self.test:,} clips; "
            f"{low:.2f} to {high:.2f} seconds, half of them up to {middle:.2f}; {self.rate:,} samples per "
            "second"
        )


def fit_clips(survey: ClipSurvey) -> dict[str, Any]:
    """Choose all values of the template of `params.yaml` for sounds."""
    count, plan = survey.train, schedule(survey.train)
    share = _validation(count)
    held_out = survey.test + (round(share * count) if survey.validation is None else survey.validation)
    return {
        "summary": str(survey),
        "source": quoted_yaml(survey.source),
        "watch": quoted_yaml(survey.watch),
        "rate": survey.rate,
        "sample_rate": next((rate for rate in _RATES if rate >= survey.rate), _RATES[-1]),
        "clip_seconds": _clip_seconds(survey),
        "has_validation": survey.validation is not None,
        "validation": share,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "learning_rate": round(0.003 * math.sqrt(plan.batch_size / 64), 4),
        "warmup_epochs": max(1, plan.epochs // 16),
        "view_count": plan.views,
        "passes": plan.epochs // plan.views,
        "held_out": held_out if held_out < _TELLING else None,
    }


def _clip_seconds(survey: ClipSurvey) -> float:
    """Return a length that nineteen of twenty clips do not exceed, in tenths of a second."""
    long = math.ceil(float(np.quantile(survey.seconds, 0.95)) * 10) / 10
    return min(max(long, _SHORTEST_SECONDS), _LONGEST_SECONDS)


def _validation(count: int) -> float:
    """Return the validation share of the training clips: 0, or at least 50 clips."""
    if count < _CHOOSING:
        return 0.0
    return 0.2 if count < _FEW else 0.1 if count < _MANY else 0.02
