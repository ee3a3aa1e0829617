"""metrics.json tells whether it, and the history beside it, are as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.core.package import program_version
from pipeline.report.metrics import open_metrics, read_metrics, with_digests

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
    found = read_metrics(path, "x")
    assert found.values == json.loads(json.dumps(METRICS)) | {"written_by": program_version()}
    assert found.history == with_digests({}, HISTORY)["digests"]["history"]


@pytest.mark.parametrize(
    "change",
    [
        {"top1": 0.3},
        {"top5": 0},
        {"more": 1},
        {"classes": [{"name": "e", "recall": 1.0}]},
        {"drift": {"2": 0.5}},
        {"digests": 3},
        {"digests": {}},
        {"digests": None},
        {"digests": {"metrics": with_digests(METRICS, HISTORY)["digests"]["metrics"]}},
        {"digests": {**with_digests(METRICS, HISTORY)["digests"], "history": None}},
        {"written_by": "0.0.1"},
        {"top1": 1e999, "digests": {}},
        {"digests": {"metrics": "0" * 64}},
        {"digests": {"metrics": ["a"], "history": "b"}},
    ],
)
def test_any_change_is_refused_with_the_command_to_run(path, change):
    text = json.dumps(json.loads(path.read_text()) | change).replace("Infinity", "1e999")
    path.write_text(text)
    assert not open_metrics(path, "pipeline x").is_as_written
    with pytest.raises(DataError, match=r"metrics\.json: changed after the run wrote it.*: pipeline x$"):
        read_metrics(path, "pipeline x")


@pytest.mark.parametrize("key", ["digests", "written_by"])
@pytest.mark.parametrize("becomes", [None, "diggsts"])
def test_a_damaged_or_missing_key_is_refused(path, key, becomes):
    values = json.loads(path.read_text())
    value = values.pop(key)
    path.write_text(json.dumps(values if becomes is None else values | {becomes: value}))
    with pytest.raises(DataError, match="changed after the run wrote it"):
        read_metrics(path, "x")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"top1": NaN}', "[" * 100_000, '{"a":' * 990 + "1" + "}" * 990, "\udcff"],
)
def test_a_file_of_another_kind_is_refused_in_one_line(path, content):
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(
        DataError, match=r"metrics\.json: not the metrics of a run \(.*\); run: pipeline x$"
    ):
        read_metrics(path, "pipeline x")


def test_the_history_beside_it_is_compared(path):
    history = path.with_name("history.csv")
    history.write_bytes(HISTORY.replace("\n", "\r\n").encode())
    assert read_metrics(path, "x").is_as_written
    history.write_text(HISTORY.replace("5", "6"))
    with pytest.raises(DataError, match=r"history\.csv: changed after the run wrote it"):
        read_metrics(path, "x")


def test_another_layout_of_the_same_values_is_no_change(path):
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(values.items()))).replace(", ", ",\r\n"))
    assert read_metrics(path, "x").values["top1"] == METRICS["top1"]


def test_a_file_of_an_older_version_is_read(path):
    path.write_text(json.dumps(METRICS))
    found = read_metrics(path, "x")
    assert (found.values, found.history) == (json.loads(json.dumps(METRICS)), None)
