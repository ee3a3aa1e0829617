"""A run's metrics.json: its figures, and digests that tell whether it is as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.files import read_json
from pipeline.core.hashing import bytes_digest, spec_digest
from pipeline.tasks.class_figures import FIRST

_DIGESTS = "digests"


def with_digests(metrics: Mapping[str, Any], history: str) -> dict[str, Any]:
    """Return the content of a metrics.json.

    Args:
        metrics: of the run, plain values.
        history: text of the run's history.csv.

    Returns:
        `metrics` and `digests`: SHA-256 (hex) of `metrics` as canonical JSON, and of `history`.

    Example:
        >>> list(with_digests({"top1": 0.9}, "epoch,loss"))
        ['top1', 'digests']
    """
    digests = {"metrics": _digest(metrics), "history": bytes_digest(history.encode())}
    return {**metrics, _DIGESTS: digests}


def read_metrics(path: Path, command: str) -> dict[str, Any]:
    """Read a metrics.json that `command` writes.

    A file of an older version has no digests, and is read as it is.

    Raises:
        DataError: the file is missing, is not a table of figures, or has changed since it was written.
    """
    metrics, _ = read_with_history_digest(path, command)
    return metrics


def read_with_history_digest(path: Path, command: str) -> tuple[dict[str, Any], str | None]:
    """Read a metrics.json as `read_metrics` does, with its digest of history.csv; None if it has none."""
    try:
        metrics = read_json(path)
    except FileNotFoundError:
        raise missing(path, command) from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected metrics; run: {command}") from None
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: contains a {type(metrics).__name__}, expected metrics; run: {command}")
    digests = metrics.pop(_DIGESTS, None)
    if digests is None:
        digests = {}
    elif not isinstance(digests, dict) or digests.get("metrics") != _digest(metrics):
        raise changed(path, command)
    classes = metrics.get("classes")
    if "top5" in metrics and isinstance(classes, list) and 0 < len(classes) <= FIRST:
        # An older version wrote 1 for every model.
        metrics["top5"] = None
    return metrics, digests.get("history")


def changed(path: Path, command: str) -> DataError:
    """Return the error of a file of a run that is not as it was written."""
    return DataError(
        f"{path}: changed after the run wrote it: its digest differs; to train again, run: {command}"
    )


def missing(path: Path, command: str) -> DataError:
    """Return the error of a file of a run that is not there."""
    return DataError(
        f"{path}: no such file; the report needs every run of params.yaml's sweep; run: {command}"
    )


def _digest(metrics: Mapping[str, Any]) -> str | None:
    """Return the digest of metrics; None if there is none, since a number is NaN or infinite."""
    try:
        # A round trip, as JSON turns keys into text.
        return spec_digest(json.loads(json.dumps(metrics)))
    except ValueError:
        return None
