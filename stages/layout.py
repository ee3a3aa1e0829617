"""Where the stages keep things, relative to the project's folder; dvc.yaml names the same paths."""

from __future__ import annotations

from pathlib import Path

from pipeline.naming import require_name

PREPARED = Path("data/prepared")
LOGITS = Path("data/logits")
TEACHERS = Path("models/teachers")
STUDENTS = Path("models/students")
RUNS = Path("runs")
REPORTS = Path("reports")
STATE = Path("runs/.state")
BASELINE = "baseline"


def teacher_checkpoint(name: str) -> Path:
    """Return where a teacher's weights are.

    Raises:
        ConfigError: the name could lead elsewhere, as one of a store that somebody else made.
    """
    require_name("teacher", name)
    return TEACHERS / f"{name}.pt"


def teacher_run(name: str) -> str:
    """Return the name of a teacher's run."""
    return f"teacher-{name}"


def store(dump: str) -> Path:
    """Return where a dump's store is."""
    return LOGITS / f"{dump}.zarr"


def run_name(dump: str | None, student: str, recipe: str, seed: int) -> str:
    """Return the name of a student's run; a baseline, which has no dump, says so."""
    return f"{dump or BASELINE}-{student}-{recipe}-{seed}"
