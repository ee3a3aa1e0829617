"""The interface between a run and the trackers of experiments that record it.

A tracker gets plain names and numbers. It knows nothing of networks, tasks or stores, so one of the user's
own needs no class of this package: see `README.md`. Starting, resuming and failures belong to `log.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

# Name of the MLflow experiment and of the W&B project, unless the user's settings of these say otherwise.
PROJECT = "softlabel-pipeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as a tracker sees it when it starts.

    Args:
        name: of the run, e.g. main-shufflenet-kd-0.
        folder: for the files of all trackers; each tracker has a folder of its own in it.
        parameters: name -> plain value, or a mapping of further names; see `flat`.
        epoch: number of finished epochs, above 0 if the run resumes.
        continues: id that this tracker gave the run before it was interrupted; None for a new one.
    """

    name: str
    folder: Path
    parameters: Mapping[str, Any]
    epoch: int = 0
    continues: str | None = None


@runtime_checkable
class Tracker(Protocol):
    """Record one run. Any exception ends the tracker, not the run."""

    @property
    def id(self) -> str:
        """A text by which the tracker finds the run again when it resumes."""

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Record a finished epoch.

        Args:
            number: of the epoch, counted from 1.
            figures: name -> finite number, e.g. `train/loss` or `validation/top1`.
        """

    def end(self, figures: Mapping[str, float] | None) -> None:
        """Record the end of the run, and release all files and connections.

        Args:
            figures: name -> finite number on the test samples, e.g. `test/top1`; None for a run that was
                interrupted or failed, and may resume.
        """


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, in one level.

    >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'd': [2]}
    """
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {prefix + name: inner}
    return found
