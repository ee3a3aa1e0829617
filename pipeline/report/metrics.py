"""A run's metrics.json: its figures, and digests that tell whether it is as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.files import parse_object
from pipeline.core.hashing import bytes_digest, spec_digest
from pipeline.core.package import program_version
from pipeline.tasks.class_figures import FIRST

_DIGESTS, _WRITTEN_BY = "digests", "written_by"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFile:
    """The content of a metrics.json.

    Args:
        values: figures and origin of the run, without digests.
        is_as_written: whether they have their digest; True for older versions, which wrote none.
        history: SHA-256 (hex) of the history.csv beside it; None of an older version.
    """

    values: dict[str, Any]
    is_as_written: bool
    history: str | None


def with_digests(metrics: Mapping[str, Any], history: str) -> dict[str, Any]:
    """Return the content of a metrics.json.

    Args:
        metrics: of the run, plain values.
        history: text of the run's history.csv.

    Returns:
        `metrics`; `written_by`, the version of the program; and `digests`, SHA-256 (hex) of `history`, and
        of all other values as canonical JSON.

    Example:
        >>> list(with_digests({"top1": 0.9}, "epoch,loss"))
        ['top1', 'written_by', 'digests']
    """
    of_history = {"history": bytes_digest(history.encode())}
    told = {**metrics, _WRITTEN_BY: program_version(), _DIGESTS: of_history}
    return {**told, _DIGESTS: {"metrics": _digest(told), **of_history}}


def open_metrics(path: Path, command: str) -> MetricsFile:
    """Read a metrics.json that `command` writes, changed or not.

    Raises:
        DataError: the file is missing, or no JSON object.
    """
    try:
        values = parse_object(path.read_bytes())
    except FileNotFoundError:
        raise missing_error(path, command) from None
    except ValueError as error:
        raise DataError(f"{path}: not the metrics of a run ({error}); run: {command}") from None
    is_older = _DIGESTS not in values and _WRITTEN_BY not in values
    digests = values.pop(_DIGESTS, None)
    known: dict[str, Any] = digests if isinstance(digests, dict) else {}
    expected = known.pop("metrics", None)
    try:
        is_as_written = is_older or expected == _digest({**values, _DIGESTS: known})
    except (ValueError, RecursionError):
        is_as_written = False  # a number beyond floats, e.g. 1e999, or nested deeply
    classes = values.get("classes")
    if "top5" in values and isinstance(classes, list) and 0 < len(classes) <= FIRST:
        # An older version wrote 1 for every model.
        values["top5"] = None
    return MetricsFile(values=values, is_as_written=is_as_written, history=known.get("history"))


def read_metrics(path: Path, command: str) -> MetricsFile:
    """Read a metrics.json that `command` writes, and look at the history.csv beside it, if there is one.

    Raises:
        DataError: the file is missing, or no JSON object; or one of both has changed since it was written.
    """
    found, history = open_metrics(path, command), path.with_name("history.csv")
    if not found.is_as_written:
        raise changed_error(path, command)
    if found.history is not None and history.exists():
        # As text: Git may have changed the ends of lines.
        text = history.read_text("utf-8", errors="replace")
        if bytes_digest(text.encode()) != found.history:
            raise changed_error(history, command)
    return found


def changed_error(path: Path, command: str) -> DataError:
    """Return the error for a file of a run that has changed since `command` wrote it."""
    return DataError(
        f"{path}: changed after the run wrote it: its digest differs; restore it (dvc checkout --force "
        f"{path}), or train again with: {command}"
    )


def missing_error(path: Path, command: str) -> DataError:
    """Return the error for a missing file of a run, which `command` writes."""
    needed, others = "the teacher of every dump", ""
    if "student" in command:
        needed, others = (
            "every run of params.yaml's sweep",
            ", or every missing run at once: pipeline sweep",
        )
    return DataError(
        f"{path}: no such file; the report needs {needed}; run: {command}{others}, or dvc repro"
    )


def _digest(metrics: Mapping[str, Any]) -> str:
    # A round trip, as JSON turns keys into text.
    return spec_digest(json.loads(json.dumps(metrics)))
