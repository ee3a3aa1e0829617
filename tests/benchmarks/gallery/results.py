"""Result files, the entries that show them, and the forms of figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
NOT_RUN = "not run yet"
Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A piece of Markdown made from result files.

    Args:
        make: takes the content of each file, and returns the Markdown.
        files: names in tests/benchmarks/results/.
    """

    make: Callable[..., str]
    files: tuple[str, ...] = ()

    def text(self, folder: Path = RESULTS) -> str:
        """Return the Markdown, or `NOT_RUN` while one of the files is missing."""
        if not all((folder / name).exists() for name in self.files):
            return NOT_RUN
        return self.make(*(read(folder / name) for name in self.files))


def read(path: Path) -> Any:
    """Return the content of a JSON file, or the rows of a CSV file as dictionaries of text."""
    if path.suffix == ".csv":
        with path.open() as lines:
            return list(csv.DictReader(lines))
    return json.loads(path.read_text())


def table(*rows: tuple[str, ...]) -> str:
    """Return rows as a Markdown table; the first one is its head.

    >>> print(table(("codec", "bytes"), ("fp16", "1,522")))
    | codec | bytes |
    |---|---|
    | fp16 | 1,522 |
    """
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


# Figures.


def mean(found: Found) -> str:
    """Return an arm of `small_students.summary`, e.g. `64.48 ± 0.14`."""
    return f"{found['mean']:.2f} ± {found['standard_error']:.2f}"


def gain(found: Found) -> str:
    """Return an arm's paired difference, e.g. `−0.12 ± 0.21`; nothing for the reference itself."""
    if found["difference"] == found["difference_standard_error"] == 0:
        return ""
    return f"{found['difference']:+.2f} ± {found['difference_standard_error']:.2f}".replace("-", "−")


def errors(found: Found) -> float:
    """Return an arm's paired difference in standard errors; infinite if all pairs differ by the same."""
    difference, error = found["difference"], found["difference_standard_error"]
    return difference / error if error else math.copysign(math.inf, difference)


def ratio(found: Found) -> str:
    """Return the median of the rounds and their range, e.g. `0.98 [0.96, 1.07]`."""
    return f"{found['median']:.2f} [{found['min']:.2f}, {found['max']:.2f}]"


def scientific(value: float) -> str:
    """Return a small number with two digits, e.g. `9.4e-4`."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"
