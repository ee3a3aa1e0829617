"""Tables of labels beside files: tags, lists of tags and numbers, and one clear line for each mistake."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.samples.files import Files
from pipeline.samples.folders import find_classes
from pipeline.samples.label_tables import label_rows

FILES = Files("image", (".png",))


def _folder(tmp_path, tables: dict[str, str], names: list[str]):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    return tmp_path


SPLITS = ["train/a.png", "train/deep/b.png", "train/c.png", "test/d.png"]


def test_columns_of_tags(tmp_path):
    text = "name,cat,dog\ntrain/a.png,1,0\ntrain/deep/b.png,1,\ntest/d.png,0,1\n"
    found = find_classes(_folder(tmp_path, {"labels.csv": text}, SPLITS), FILES)
    assert found.classes == ("cat", "dog")
    assert dict(zip(found.train.names, found.train.labels.tolist(), strict=True)) == {
        "train/a.png": [1, 0],
        "train/c.png": [-1, -1],
        "train/deep/b.png": [1, -1],
    }
    assert found.test.labels.tolist() == [[0, 1]]
    assert found.train.labels.dtype == np.int8
    sample = found.train.samples(lambda path: lambda: path)[0]
    assert (sample.name, sample.label.tolist()) == ("train/a.png", [1, 0])


def test_a_table_per_split_and_a_list_of_tags(tmp_path, capsys):
    train = "name,tags\na.png,cat\ndeep/b.png,cat; dog\nc.png,\n"
    tables = {"train/labels.csv": train, "test/labels.csv": "name,tags\nd.png,dog\n"}
    _folder(tmp_path, {}, SPLITS)
    found = find_classes(_folder(tmp_path, tables, []), FILES)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert str(found.left_out) == ""
    assert capsys.readouterr().err == ""


def test_numbers_and_unlabelled_files(tmp_path, capsys):
    text = "name,x,y\ntrain/a.png,1,0.5\ntrain/deep/b.png,,\ntest/d.png,-3,1e2\n"
    found = find_classes(_folder(tmp_path, {"labels.csv": text}, SPLITS), FILES)
    assert found.train.labels.dtype == np.float32
    assert found.train.labels[0].tolist() == [1, 0.5]
    assert all(math.isnan(value) for value in found.train.labels[2])
    assert "2 images of 3 without a label in labels.csv" in capsys.readouterr().err


def test_without_a_test_folder_a_fifth_of_the_labelled_files_is_drawn(tmp_path):
    names = [f"{n % 3}/{n}.png" for n in range(60)]
    rows = "".join(f"{name},{int(name[0])}\n" for name in names[:50])
    found = find_classes(_folder(tmp_path, {"labels.csv": "name,x\n" + rows}, names), FILES)
    assert len(found.train) + len(found.test) == 60
    assert 4 <= len(found.test) <= 18
    assert set(found.test.names) < set(names[:50])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,cat\n", r"begins with the columns .*; expected name, then one column per tag or number"),
        ("name\ntrain/a.png\n", r"begins with the columns .*; expected name"),
        ("name,cat,cat\n", r"class name 'cat' occurs twice"),
        ("name,cat\ntrain/a.png,1,0\n", r"line 2: 3 cells; expected 2, as in the first line"),
        ("name,cat\ntrain/a.png,1\ntrain/a.png,0\n", r"line 3: 'train/a.png' again; expected one row"),
        ("name,cat\ntrain/no.png,1\n", r"labels.csv names train/no.png, 1 file that the folder lacks"),
        ("name,x,y\ntrain/a.png,0.5,\n", r"line 2: y is ''; expected a finite number"),
        ("name,x\ntrain/a.png,nan\n", r"line 2: x is 'nan'; expected a finite number"),
        (
            "name,cat\ntrain/a.png,yes\n",
            r"line 2: cat is 'yes'; expected a finite number \(or, in a",
        ),
        ('name,cat\n"train/a.png,1\n', r"not a readable table"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        find_classes(_folder(tmp_path, {"labels.csv": text}, SPLITS), FILES)


def test_tables_of_splits_have_the_same_columns(tmp_path):
    _folder(tmp_path, {}, SPLITS)
    tables = {"train/labels.csv": "name,cat\na.png,1\n", "test/labels.csv": "name,dog\nd.png,1\n"}
    with pytest.raises(DataError, match="has the columns dog; expected those of the first table, cat"):
        find_classes(_folder(tmp_path, tables, []), FILES)
    (tmp_path / "test/labels.csv").unlink()
    with pytest.raises(DataError, match=r"test/labels.csv: not a readable table"):
        find_classes(tmp_path, FILES)


def _rows(columns: tuple[str, ...], *cells):
    return label_rows("a.csv", columns, [(f"a.csv:{n}", row) for n, row in enumerate(cells, 2)])


def test_rows_of_any_table_have_the_same_rules():
    classes, labels = _rows(("cat", "dog"), ("1", ""), (True, 0), (None, 1.0), None)
    assert (classes, labels.dtype, labels.tolist()) == (
        *(("cat", "dog"), np.int8),
        [[1, -1], [1, 0], [-1, 1], [-1, -1]],
    )
    classes, labels = _rows(("a", "b"), ("0.5", 2), (None, float("nan")), None)
    assert (classes, labels.dtype, labels[0].tolist()) == (("a", "b"), np.float32, [0.5, 2.0])
    assert np.isnan(labels[1:]).all()


def test_lists_of_tags_are_texts_or_lists():
    expected = (("cat", "dog"), [[1, 0], [1, 1], [0, 0], [-1, -1]])
    classes, labels = _rows(("tags",), ("cat",), ("dog; cat",), ("",), None)
    assert (classes, labels.tolist()) == expected
    classes, labels = _rows(("topics",), (["cat"],), (["dog", "cat"],), ([],), None)
    assert (classes, labels.tolist()) == expected


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        (("a", "b"), [("0.5", "")], "a.csv:2: b is ''; expected a finite number"),
        (("a",), [("0.5",), ("inf",)], "a.csv:3: a is 'inf'; expected a finite number"),
        (("a",), [("0.5",), ("much",)], "a.csv:3: a is 'much'; expected a finite number"),
        (("a", "b"), [(["x"], "1")], "a list in one of 2 label columns"),
        (("a",), [(["x;y"],)], "tag 'x;y' has a ';'"),
    ],
)
def test_a_wrong_cell_of_any_table_is_named(columns, cells, message):
    with pytest.raises(DataError, match=message):
        _rows(columns, *cells)
