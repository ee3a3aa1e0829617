"""The findings of a step, written to a JSON file as soon as they are known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.steps import AIMS

Content = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The settings of a step's run.

    Args:
        device: torch's name of the device.
        small: use small sizes, to try the check itself; figures mean nothing.
    """

    device: str
    small: bool

    def pick(self, full: int, small: int) -> int:
        """Return the large or the small value of a size."""
        return small if self.small else full


class Findings:
    """The result file of a step.

    Args:
        path: of the file.
        head: description of the machine and versions.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path = path
        self._content: Content = {**head, "rows": [], "figures": {}}
        write(path, self._content)

    @property
    def figures(self) -> Content:
        """The saved figures by name."""
        return dict(self._content["figures"])

    @property
    def broken(self) -> list[str]:
        """The required measures that failed."""
        return [row["measure"] for row in self._content["rows"] if row["must"] and not row["holds"]]

    def keep(self, **figures: Any) -> None:
        """Save figures; earlier ones of the same names are replaced."""
        self._content["figures"] |= figures
        write(self._path, self._content)

    def row(self, aim: str, value: float, found: str) -> None:
        """Save a figure that has an aim; an earlier one is replaced.

        Args:
            aim: name of the aim in `AIMS`.
            value: number to compare with the aim.
            found: the same as text, with its spread if it has one.
        """
        wanted = AIMS[aim]
        rows = [row for row in self._content["rows"] if row["aim"] != aim]
        row = {"aim": aim, "measure": wanted.measure, "wanted": wanted.wanted, "must": wanted.must}
        rows.append({**row, "value": value, "found": found, "holds": bool(wanted.holds(value))})
        self._content["rows"] = rows
        write(self._path, self._content)

    def ratio(self, aim: str, spread: Mapping[str, float]) -> None:
        """Save a ratio of several rounds."""
        self.row(aim, spread["median"], spread_text(spread))


def spread_text(spread: Mapping[str, float]) -> str:
    """Format a median and its range."""
    return f"{spread['median']:.3f} [{spread['min']:.3f}, {spread['max']:.3f}]"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically: a reader sees the old text or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
