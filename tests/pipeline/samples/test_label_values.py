"""Values of tables, text files and JSON become labels of one kind, or are refused by row."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.samples.label_values import Labelled, read_labels

UNKNOWN = float("nan")


def read(train: list, test: list, **given) -> Labelled:
    return read_labels("a.csv", {"train": train, "test": test}, lambda s, row: f"{s} row {row}", **given)


@pytest.mark.parametrize(
    ("train", "test", "classes", "expected"),
    [
        ([2, 0, None, 1], [1], ("0", "1", "2"), ([2, 0, -1, 1], [1])),
        (["10", "2", "", "1"] + [str(n) for n in range(11)], ["0"], tuple(map(str, range(11))), None),
        ([0.0, 1.0, UNKNOWN], [1.0], ("0", "1"), ([0, 1, -1], [1])),
        (["dog", " cat ", "", -1], ["dog"], ("cat", "dog"), ([1, 0, -1, -1], [1])),
        ([True, False], [True], ("0", "1"), ([1, 0], [1])),
        ([["b"], [], None], [["a", "b"]], ("a", "b"), ([[0, 1], [0, 0], [-1, -1]], [[1, 1]])),
        ([[1, 0], [0, -1]], [None], ("0", "1"), ([[1, 0], [0, -1]], [[-1, -1]])),
        ([np.array([1, 0])], [(0, 1)], ("0", "1"), ([[1, 0]], [[0, 1]])),
        ([{"a": 1, "b": None}], [{"b": "0", "a": "1"}], ("a", "b"), ([[1, -1]], [[1, 0]])),
        ([0.5, 1, None], [2], ("0",), ([[0.5], [1], [UNKNOWN]], [[2]])),
        (["0.5", "1e3", ""], ["-2"], ("0",), ([[0.5], [1000], [UNKNOWN]], [[-2]])),
        ([[0.5, 2], None], [[1, 2]], ("0", "1"), ([[0.5, 2], [UNKNOWN, UNKNOWN]], [[1, 2]])),
        ([{"a": 0.5}, {"a": None}], [{"a": 2}], ("a",), ([[0.5], [UNKNOWN]], [[2]])),
        ([None, ""], [-1], ("unlabelled",), ([[UNKNOWN], [UNKNOWN]], [[UNKNOWN]])),
    ],
)
def test_the_values_decide_the_kind(train, test, classes, expected):
    found = read(train, test)
    assert found.classes == classes
    for split, values in zip(("train", "test"), expected or (), strict=False):
        np.testing.assert_array_equal(found.labels[split], np.array(values))


def test_declared_names_are_classes_in_their_order():
    found = read([1, 0, -1], [1], names=["zebra", "ant"])
    assert (found.classes, found.labels["train"].tolist()) == (("zebra", "ant"), [1, 0, -1])
    tags = read([[0, 2], [1]], [[]], names=["a", "b", "c"])
    assert tags.labels["train"].tolist() == [[1, 0, 1], [0, 1, 0]]
    assert tags.labels["test"].tolist() == [[0, 0, 0]]


def test_numbers_from_one_are_shifted(capsys):
    assert read([1, 2, 2], [1]).classes == ("1", "2")
    assert "labels start at 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["cat"], ["cow"], r"test row 0: label 'cow' is no class of the training rows"),
        (["a", ["b"]], ["c"], r"train row 0: label 'a'; expected a list of tags"),
        ([[1, 0], [1]], [[0, 1]], r"train row 1: label \[1\]; expected a list of 2 numbers"),
        ([{"a": 1}, {"b": 1}], [], r"train row 1: label .*; expected a number for each of a"),
        ([0.5, "high"], [1], r"label 'high' is no class|no class of"),
        ([0, 900], [0], r"without large gaps"),
        ([0, -7], [0], r"train row 1: label -7; expected a class number from 0"),
        ([0, 1], [2], r"occurs in test but has no training sample"),
    ],
)
def test_labels_of_several_kinds_are_refused_by_row(train, test, message):
    with pytest.raises(DataError, match=message):
        read(train, test)
