"""Paths of all outputs, relative to the project's folder; dvc.yaml names the same paths."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import ConfigError, quoted
from pipeline.core.text import NAME, RULE

PREPARED = Path("data/prepared")
LOGITS = Path("data/logits")
TEACHERS = Path("models/teachers")
STUDENTS = Path("models/students")
RUNS = Path("runs")
REPORTS = Path("reports")
STATE = Path("runs/.state")
# Of trackers. Not in RUNS, which DVC compares before it runs the report.
LOGS = Path("logs")
BASELINE = "baseline"


def teacher_checkpoint(name: str) -> Path:
    """Return the path of a teacher's weights.

    Raises:
        ConfigError: the name, which may come from an untrusted store, is not valid.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"teacher {quoted(name)} is not a valid name; expected {RULE}; continue without the teacher, "
            "or dump again with a valid name"
        )
    return TEACHERS / f"{name}.pt"


def teacher_run(name: str) -> str:
    """Return the name of a teacher's run."""
    return f"teacher-{name}"


def store(dump: str) -> Path:
    """Return the path of a dump's store."""
    return LOGITS / f"{dump}.zarr"


def pointer(dump: str) -> Path:
    """Return the path of the pointer to a dump's store, if stores lie elsewhere: see `places.py`."""
    return LOGITS / f"{dump}.json"


def run_name(dump: str | None, student: str, recipe: str, seed: int) -> str:
    """Return the name of a student's run, e.g. main-small-kd-0, or baseline-small-scratch-0."""
    return f"{dump or BASELINE}-{student}-{recipe}-{seed}"
