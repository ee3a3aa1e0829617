"""Choose the parameters for a log of interactions, for the template of `params.yaml`.

Owns each choice and its reason; `survey.py` reads the log and `init.py` writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.render import quoted_yaml

_FEW, _SOME, _MANY = 2_000, 20_000, 500_000
# Below this, a hit rate of 10 % on held-out histories has a standard error of 2 points or more.
_TELLING = 250
_SHORTEST, _LONGEST = 8, 200
# More samples of one user say little that the others do not.
_MOST_SAMPLES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSurvey:
    """Counts and lengths of a log.

    Args:
        source: value of `data.source`.
        options: keys of `data` that tell how to read it, e.g. columns.
        watch: the folder or file.
        items: C, the size of the catalogue.
        users: number of users, i.e. of test histories.
        train: number of training samples.
        lengths: (n,) items of some test histories, evenly spread.
    """

    source: str
    options: Mapping[str, Any]
    watch: str
    items: int
    users: int
    train: int
    lengths: NDArray[np.int64]

    def __str__(self) -> str:
        """Return one line: items, users, training samples, lengths."""
        middle, high = (int(q) for q in np.quantile(self.lengths, [0.5, 0.95]))
        return (
            f"{self.items:,} items, {self.users:,} users, {self.train:,} training samples; half of the "
            f"histories have up to {middle} items, one in twenty more than {high}"
        )


def fit_log(survey: LogSurvey) -> dict[str, Any]:
    """Choose all values of the template of `params.yaml`."""
    epochs, batch_size, views = _schedule(survey.train)
    columns = {
        name: "null" if value is None else quoted_yaml(str(value)) for name, value in survey.options.items()
    }
    return {
        "summary": str(survey),
        "source": quoted_yaml(survey.source),
        "watch": quoted_yaml(survey.watch),
        "columns": {"user": "null", "item": "null", "timestamp": "null"} | columns,
        "samples_per_user": _MOST_SAMPLES if survey.train > _MOST_SAMPLES * survey.users else "null",
        "max_length": max_length(survey.lengths),
        "epochs": epochs,
        "batch_size": batch_size,
        "views": views,
        "passes": epochs // views,
        "held_out": survey.users if survey.users < _TELLING else None,
        "width": 64 if survey.train < _MANY else 128,
    }


def max_length(lengths: NDArray[np.int64]) -> int:
    """Choose the items that models see: all of nineteen histories in twenty, 8 to 200."""
    return int(np.clip(np.quantile(lengths, 0.95), _SHORTEST, _LONGEST))


def _schedule(count: int) -> tuple[int, int, int]:
    """Return epochs, batch size and views; fewer samples need more passes."""
    if count < _FEW:
        return 48, 32, 8
    if count < _SOME:
        return 32, 64, 8
    return (16, 256, 8) if count < _MANY else (8, 512, 4)
