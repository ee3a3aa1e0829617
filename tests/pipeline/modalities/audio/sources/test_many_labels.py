"""Tables of clips whose labels are tags or numbers, or that have none; no file is opened."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources import open_source


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(header: list[str], rows) -> None:
    with Path("clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def labels_of(samples) -> list[list[float]]:
    return [sample.label.tolist() for sample in samples]


def test_columns_of_tags_and_a_column_of_lists_mean_the_same():
    write_table(
        ["path", "split", "rain", "wind", "tags"],
        [
            ("a.wav", "train", 1, 0, "rain"),
            ("b.wav", "train", 1, 1, "wind; rain"),
            ("c.wav", "test", 0, 0, ""),
        ],
    )
    for label in (("rain", "wind"), ("tags",)):
        found = open_source("csv:clips.csv", AudioOptions(label=label))
        assert found.classes == ("rain", "wind")
        assert labels_of(found.train) == [[1, 0], [1, 1]]
        assert labels_of(found.test) == [[0, 0]]
        assert found.train[0].label.dtype == np.int8


def test_numbers_and_unlabelled_clips_of_a_drawn_split():
    write_table(["path", "loudness"], [(f"{n}.wav", "" if n == 3 else n / 4) for n in range(30)])
    found = open_source("csv:clips.csv", AudioOptions(label=("loudness",)))
    labels = {sample.name: sample.label for part in (found.train, found.test) for sample in part}
    assert (len(labels), labels["2.wav"].tolist(), labels["2.wav"].dtype) == (30, [0.5], np.float32)
    assert np.isnan(labels["3.wav"]).all()
    # An unlabelled clip trains.
    assert "3.wav" in [sample.name for sample in found.train]
    assert 1 <= len(found.test) < 15


def test_an_empty_label_and_minus_one_are_unlabelled():
    rows = [("a.wav", "sea"), ("b.wav", ""), ("c.wav", "-1"), ("d.wav", "wood")]
    write_table(["path", "label", "split"], [*((*row, "train") for row in rows), ("e.wav", "sea", "test")])
    found = open_source("csv:clips.csv", AudioOptions())
    assert (found.classes, [one.label for one in found.train]) == (("sea", "wood"), [0, -1, -1, 1])


def test_clips_without_labels_need_an_empty_list():
    write_table(["path"], [(f"{n}.wav",) for n in range(30)])
    with pytest.raises(DataError, match=r"no column 'label', which data\.label names"):
        open_source("csv:clips.csv", AudioOptions())
    found = open_source("csv:clips.csv", AudioOptions(label=()))
    assert (found.classes, {sample.label for sample in found.train}) == (("unlabelled",), {-1})
    assert len(found.test) >= 1


def test_a_wrong_cell_is_named_with_its_line():
    write_table(["path", "loudness"], [("a.wav", 0.5), ("b.wav", "loud")])
    with pytest.raises(DataError, match=r"clips.csv: line 3: loudness is 'loud'; expected a finite number"):
        open_source("csv:clips.csv", AudioOptions(label=("loudness",)))


def test_columns_of_labels_are_compared_with_prepared_data_as_one_text():
    assert AudioOptions(label=("rain", "wind")).asked()["label"] == "rain,wind"
    assert AudioOptions().asked()["label"] == "label"
