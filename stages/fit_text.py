"""Choose the parameters for a folder or table of texts, for the template of `params.yaml`.

Owns each choice and its reason; `init.py` reads the texts and writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.render import quoted_yaml

_FEW, _SOME, _MANY = 1_000, 10_000, 100_000
# Below this, a fifth of the texts would choose an epoch by chance, and training needs them more.
_CHOOSING = 250
# Below this, accuracy on held-out texts has a standard error of 4 points or more.
_TELLING = 150
_SHORTEST, _LONGEST = 16, 512
# Bytes of a word with the white space before it, in European languages.
_WORD_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSurvey:
    """Counts and lengths of texts.

    Args:
        source: value of `data.source`.
        options: keys of `data` that tell how to read it, e.g. columns.
        watch: the folder or file.
        classes: C, the number of classes.
        train, validation, test: texts per split; validation is None if it is drawn from train.
        lengths: (n,) bytes of some texts, evenly spread.
    """

    source: str
    options: Mapping[str, Any]
    watch: str
    classes: int
    train: int
    validation: int | None
    test: int
    lengths: NDArray[np.int64]

    def __str__(self) -> str:
        """Return one line: classes, texts per split, lengths."""
        validation = "" if self.validation is None else f", validation {self.validation:,}"
        middle, high = (int(q) for q in np.quantile(self.lengths, [0.5, 0.95]))
        return (
            f"{self.classes} classes; train {self.train:,}{validation}, test {self.test:,} texts; half of "
            f"them up to "
            f"{middle} bytes, one in twenty above {high}"
        )


def fit_text(survey: TextSurvey) -> dict[str, Any]:
    """Choose all values of the template of `params.yaml`."""
    count = survey.train
    epochs, batch_size, views = _schedule(count)
    share = 0.0 if count < _CHOOSING else 0.2 if count < _FEW else 0.1 if count < _MANY else 0.02
    held_out = survey.test + (round(share * count) if survey.validation is None else survey.validation)
    columns = {
        name: "null" if value is None else quoted_yaml(str(value)) for name, value in survey.options.items()
    }
    return {
        "summary": str(survey),
        "source": quoted_yaml(survey.source),
        "watch": quoted_yaml(survey.watch),
        "columns": {"text": "text", "text_pair": "null", "label": "label", "id": "null"} | columns,
        "max_length": max_length(survey.lengths),
        "has_validation": survey.validation is not None,
        "validation": share,
        "epochs": epochs,
        "batch_size": batch_size,
        "views": views,
        "passes": epochs // views,
        "held_out": held_out if held_out < _TELLING else None,
        "width": 128 if count < _SOME else 256,
    }


def max_length(lengths: NDArray[np.int64]) -> int:
    """Choose the token ids per text: words of nineteen texts in twenty, a power of two from 16 to 512."""
    words = float(np.quantile(lengths, 0.95)) / _WORD_BYTES * 1.5
    wanted = 1 << max(0, int(np.ceil(np.log2(max(1.0, words)))))
    return int(np.clip(wanted, _SHORTEST, _LONGEST))


def _schedule(count: int) -> tuple[int, int, int]:
    """Return epochs, batch size and views; fewer texts need more passes."""
    if count < _FEW:
        return 32, 16, 8
    if count < _SOME:
        return 16, 32, 8
    return (8, 64, 4) if count < _MANY else (6, 128, 3)
