"""Tables of texts whose labels are tags or numbers, or that have none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.sources import open_source
from pipeline.samples.label_forms import Wanted

TEXTS = ["the sea", "an oak by the sea", "a tram", "salt", "moss", "a lamp"]
TAGS = [["sea"], ["sea", "wood"], [], ["sea"], ["wood"], None]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path: str, header: list[str], rows) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def labels_of(samples) -> list[list[int]]:
    return [sample.label.tolist() for sample in samples]


def test_columns_of_tags_in_the_files_of_two_splits():
    write_csv("t/train.csv", ["text", "sea", "wood"], [("a", 1, 0), ("b", "", 1)])
    write_csv("t/test.csv", ["text", "sea", "wood"], [("c", 0, 0)])
    found = open_source("csv:t", TextOptions(label=("sea", "wood")))
    assert found.classes == ("sea", "wood")
    assert labels_of(found.train) == [[1, 0], [-1, 1]]
    assert labels_of(found.test) == [[0, 0]]
    assert found.train[0].label.dtype == np.int8


def test_lists_of_tags_in_json_lines_are_found_by_their_values():
    lines = [json.dumps({"text": text, "label": tags}) for text, tags in zip(TEXTS, TAGS, strict=True)]
    Path("t").mkdir()
    Path("t/train.jsonl").write_text("\n".join(lines))
    Path("t/test.jsonl").write_text(json.dumps({"text": "gull", "label": ["sea"]}))
    found = open_source("jsonl:t", TextOptions())
    assert (found.classes, labels_of(found.test)) == (("sea", "wood"), [[1, 0]])
    assert labels_of(found.train) == [[1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [-1, -1]]


def test_lists_of_tags_in_texts_of_tsv():
    rows = [(text, ";".join(tags or [])) for text, tags in zip(TEXTS, TAGS, strict=True)]
    Path("t.tsv").write_text("\n".join("\t".join(row) for row in [("text", "tags"), *rows]))
    found = open_source("tsv:t.tsv", TextOptions(label=("tags",)))
    drawn = {sample.name: sample.label.tolist() for part in (found.train, found.test) for sample in part}
    assert found.classes == ("sea", "wood")
    assert sorted(drawn.values()) == sorted([[1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [0, 0]])
    assert len(found.test) >= 1


def test_numbers_and_lists_in_parquet():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    Path("t").mkdir()
    for split, scores in (("train", [0.5, None]), ("test", [2.0, 1.0])):
        columns = {"text": ["a", "b"], "grade": scores, "tags": [["x"], ["x", "y"]]}
        parquet.write_table(pyarrow.table(columns), f"t/{split}.parquet")
    found = open_source("parquet:t", TextOptions(label=("grade",)))
    assert (found.classes, found.train[0].label.dtype) == (("grade",), np.float32)
    assert labels_of(found.test) == [[2.0], [1.0]]
    assert np.isnan(found.train[1].label).all()
    tagged = open_source("parquet:t", TextOptions(label="tags"))
    assert labels_of(tagged.train) == [[1, 0], [1, 1]]


def test_an_unlabelled_file_may_lack_the_columns():
    write_csv("t/train.csv", ["text", "sea"], [("a", 1), ("b", 0)])
    write_csv("t/test.csv", ["text", "sea"], [("c", 0)])
    write_csv("t/unlabelled.csv", ["text"], [("d",)])
    found = open_source("csv:t", TextOptions(label=("sea",)))
    assert labels_of(found.train) == [[1], [0], [-1]]


def test_a_table_without_labels_is_for_embeddings_alone():
    write_csv("t.csv", ["text"], [(text,) for text in TEXTS * 5])
    found = open_source("csv:t.csv", TextOptions())
    assert found.classes == ("unlabelled",)
    assert {sample.label for part in (found.train, found.test) for sample in part} == {-1}
    assert len(found.test) >= 1
    assert Wanted(task="embedding", kinds=("index", "tags", "numbers")).require(found, "t") == "index"
    with pytest.raises(DataError, match=r"t: no labels; expected at least two classes .*embedding"):
        Wanted().require(found, "t")


@pytest.mark.parametrize(
    ("header", "row", "label", "message"),
    [
        (["text", "sea"], ("a", 1), ("sea", "wood"), "no column 'wood', which data.label lists"),
        (["text", "sea"], ("a", "much"), ("sea",), "t.csv:2: sea is 'much'; expected a finite number"),
    ],
)
def test_a_wrong_column_or_cell_is_named(header, row, label, message):
    write_csv("t.csv", header, [row])
    with pytest.raises(DataError, match=message):
        open_source("csv:t.csv", TextOptions(label=label))


def test_columns_of_labels_are_compared_with_prepared_data_as_one_text():
    assert TextOptions(label=("sea", "wood")).asked()["label"] == "sea,wood"
    assert TextOptions().asked()["label"] == "label"
