"""What a step found: in a JSON file as soon as it is known."""

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
    """How a step is run.

    Args:
        device: as torch names it.
        small: to try the check itself; figures mean nothing.
    """

    device: str
    small: bool

    def pick(self, full: int, small: int) -> int:
        """Return one of two sizes."""
        return small if self.small else full


class Findings:
    """The file of a step.

    Args:
        path: of the file.
        head: with what the figures are measured.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path = path
        self._content: Content = {**head, "rows": [], "figures": {}}
        write(path, self._content)

    @property
    def figures(self) -> Content:
        """What was kept, by name."""
        return dict(self._content["figures"])

    @property
    def broken(self) -> list[str]:
        """The measures without which the step has failed."""
        return [row["measure"] for row in self._content["rows"] if row["must"] and not row["holds"]]

    def keep(self, **figures: Any) -> None:
        """Write figures down, in place of earlier ones of the same names."""
        self._content["figures"] |= figures
        write(self._path, self._content)

    def row(self, aim: str, value: float, found: str) -> None:
        """Write a figure down that there is an aim for, in place of an earlier one.

        Args:
            aim: its name among `AIMS`.
            value: to be compared.
            found: the same for people, with its spread where it has one.
        """
        wanted = AIMS[aim]
        rows = [row for row in self._content["rows"] if row["aim"] != aim]
        row = {"aim": aim, "measure": wanted.measure, "wanted": wanted.wanted, "must": wanted.must}
        rows.append({**row, "value": value, "found": found, "holds": bool(wanted.holds(value))})
        self._content["rows"] = rows
        write(self._path, self._content)

    def ratio(self, aim: str, spread: Mapping[str, float]) -> None:
        """Write down a ratio of which there are several rounds."""
        self.row(aim, spread["median"], spread_text(spread))


def spread_text(spread: Mapping[str, float]) -> str:
    """Return a median and its range for people."""
    return f"{spread['median']:.3f} [{spread['min']:.3f}, {spread['max']:.3f}]"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Put JSON in a file's place: a reader sees the old text or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
