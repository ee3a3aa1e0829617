"""metrics.json tells whether it, and the history beside it, are as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.report.metrics import read_metrics, read_with_history_digest, with_digests

METRICS: dict[str, Any] = {
    "top1": 0.1 + 0.2,
    "top5": None,
    "classes": [{"name": "é", "recall": 1.0}],
    "drift": {2: 0.5, 10: 1e-300},
    "dump": "main",
}
HISTORY = "epoch,loss\n1,0.5\n"


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(with_digests(METRICS, HISTORY), indent=2))
    return path


def test_what_was_written_is_read(path):
    expected = json.loads(json.dumps(METRICS))
    assert read_metrics(path, "x") == expected
    metrics, digest = read_with_history_digest(path, "x")
    assert (metrics, digest) == (expected, with_digests({}, HISTORY)["digests"]["history"])


@pytest.mark.parametrize(
    "change",
    [
        {"top1": 0.3},
        {"top5": 0},
        {"more": 1},
        {"classes": [{"name": "e", "recall": 1.0}]},
        {"drift": {"2": 0.5}},
        {"top1": float("nan")},
        {"digests": 3},
        {"digests": {}},
        {"digests": {"metrics": "0" * 64}},
        {"digests": {"metrics": ["a"], "history": "b"}},
    ],
)
def test_any_change_is_refused_with_the_command_to_run(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"metrics\.json: changed after the run wrote it.*run: pipeline x$"):
        read_metrics(path, "pipeline x")


def test_another_layout_of_the_same_values_is_none(path):
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(values.items()))).replace(", ", ",\r\n"))
    assert read_metrics(path, "x")["top1"] == METRICS["top1"]


def test_a_file_of_an_older_version_is_read(path):
    path.write_text(json.dumps(METRICS))
    assert read_with_history_digest(path, "x") == (json.loads(json.dumps(METRICS)), None)
