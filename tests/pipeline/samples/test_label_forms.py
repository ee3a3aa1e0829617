"""Kinds of labels: told by their arrays, hashed into digests, prepared, and refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.errors import DataError
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.prepared import PreparedData, audit_data
from pipeline.samples.label_forms import Wanted, is_known, kind_of, label_word, label_words
from pipeline.samples.labels import keep_labels
from pipeline.samples.prepare import Preparation, prepare
from pipeline.samples.samples import Sample
from tests.pipeline.preparing import ImageIntake, ImageOptions

TAGS = np.array([[1, 0, -1], [0, 1, 0], [-1, -1, -1], [1, 1, 1]], np.int8)
NUMBERS = np.array([[0.5, 2.0], [math.nan, math.nan], [-1.0, 3.0], [7.0, 0.0]], np.float32)


def test_the_array_tells_the_kind():
    assert [kind_of(a) for a in (np.arange(3), TAGS, NUMBERS)] == ["index", "tags", "numbers"]
    assert is_known(np.array([0, -1, 2])).tolist() == [True, False, True]
    assert is_known(TAGS).tolist() == [True, True, False, True]
    assert is_known(NUMBERS).tolist() == [True, False, True, True]


def test_a_class_is_its_own_word_and_other_labels_are_told_apart_by_theirs():
    assert [label_word(label) for label in (4, -1, np.int64(3))] == [4, -1, 3]
    for labels in (TAGS, NUMBERS):
        words = label_words(labels)
        assert len(set(words.tolist())) == 4
        assert words[~is_known(labels)].tolist() == [-1]
        assert label_word(labels[0].copy()) == words[0]


def _source(labels: np.ndarray, classes: tuple[str, ...], test: np.ndarray | None = None) -> ImageSource:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 6, 6, 1)).astype(np.uint8)

    def split(name: str, values: np.ndarray) -> list[Sample]:
        return [Sample(f"{name}/{n}", label, lambda n=n: images[n]) for n, label in enumerate(values)]

    held = labels if test is None else test
    return ImageSource(classes=classes, channels=1, train=split("train", labels), test=split("test", held))


def _prepare(source: ImageSource, folder, task: str, *kinds: str, **asked) -> PreparedData:
    wanted = Preparation(
        origin="here", labels=Wanted(task=task, kinds=kinds), kinds={"task": task}, **asked
    )
    prepare(
        source,
        folder,
        wanted,
        ImageIntake(source, folder, ImageOptions()),
        state=folder.with_name("state"),
        workers=1,
        progress=lambda samples, _: iter(samples),
    )
    return PreparedData.open(folder)


@pytest.mark.parametrize(
    "wrong", [2, 5, -2, 2**63, -(2**70), 0.5, 1.0, math.nan, None, "1", np.array([0, 1]), [0, [1]]]
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_index_without_a_class_is_refused_wherever_it_stands(tmp_path, split, wrong):
    source = _source(np.array([0, 1] * 4), ("a", "b"))
    samples = [replace(sample, label=int(sample.label)) for sample in source.train]
    samples[5] = replace(samples[5], label=wrong)
    with pytest.raises(DataError) as caught:
        _prepare(replace(source, **{split: samples}), tmp_path / "data", "classes", "index", validation=0)
    assert str(caught.value) == (
        f"here: the label of sample 'train/5' is {wrong!r}; expected an integer, -1 for unlabelled, or "
        "0 to 1 for a, b; correct the source"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("wrong", [0.5, "cat", None, [0, [1]]])
def test_a_first_label_of_no_kind_is_refused(tmp_path, wrong):
    source = _source(np.array([0, 1] * 4), ("a", "b"))
    samples = [replace(source.train[0], label=wrong), *source.train[1:]]
    with pytest.raises(DataError, match=r"here: (its labels are|the label of sample 'train/0' is)"):
        _prepare(replace(source, train=samples), tmp_path / "data", "classes", "index", validation=0)


@pytest.mark.parametrize("label", [np.int64(1), np.uint8(1), np.array(1), True, torch.tensor(1)])
def test_any_integer_is_an_index(tmp_path, label):
    source = _source(np.array([0, 1] * 4), ("a", "b"))
    samples = [*source.train[1:], replace(source.train[0], label=label)]
    data = _prepare(replace(source, train=samples), tmp_path / "data", "classes", "index", validation=0)
    assert data.train.labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [("tags", np.tile(TAGS, (5, 1)), ("a", "b", "c")), ("numbers", np.tile(NUMBERS, (5, 1)), ("x", "y"))],
)
def test_labels_of_each_kind_are_prepared_and_read_back(tmp_path, kind, labels, classes):
    task = {"tags": "multilabel", "numbers": "scores"}[kind]
    data = _prepare(_source(labels, classes), tmp_path / "data", task, kind, validation=0.3)
    assert data.task == task
    for split in (data.train, data.validation, data.test):
        rows = [int(name.split("/")[1]) for name in split.names]
        assert split.labels.dtype == labels.dtype
        np.testing.assert_array_equal(split.labels, labels[rows])
        split.require_unchanged(np.arange(len(split)))
    described = json.loads((tmp_path / "data/dataset.json").read_text())
    assert described["labelled"]["test"] == 15
    # Unlabelled samples always train.
    assert is_known(data.validation.labels).all()
    assert audit_data(tmp_path / "data", workers=1, progress=lambda rows, _: iter(rows)).bad == []


def test_another_label_is_another_digest(tmp_path):
    one = _prepare(_source(TAGS, ("a", "b", "c")), tmp_path / "one", "multilabel", "tags")
    changed = TAGS.copy()
    changed[1, 2] = 1
    two = _prepare(_source(changed, ("a", "b", "c")), tmp_path / "two", "multilabel", "tags")
    assert (one.train.digests != two.train.digests).tolist() == [False, True, False, False]


def test_equal_images_of_other_tags_are_told(tmp_path, capsys):
    source = _source(TAGS, ("a", "b", "c"))
    twice = replace(source, train=[source.train[0], Sample("train/again", TAGS[1], source.train[0].load)])
    _prepare(twice, tmp_path / "data", "multilabel", "tags")
    assert "two labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label": np.array([1, 0], np.int8)},
            r"is int8 \(2,\); expected int8 \(3,\), a value for each of a",
        ),
        ({"label": np.array([1, 0, 2], np.int8)}, "is 2 for 'c'; expected 1, 0, or -1 for unknown"),
        ({"label": np.array([1, 0, 1])}, r"is int64 \(3,\); expected int8"),
        ({"label": 1}, r"is int64 \(\); expected int8 \(3,\)"),
    ],
)
def test_a_wrong_label_is_named(change, said):
    source = _source(TAGS, ("a", "b", "c"))
    bad = replace(source, train=[source.train[0], replace(source.train[1], **change)])
    with pytest.raises(DataError, match=rf"here: the label of sample 'train/1' {said}"):
        Wanted(task="multilabel", kinds=("tags",)).require(bad, "here")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_named(value):
    labels = NUMBERS.copy()
    labels[0, 1] = value
    with pytest.raises(DataError, match=r"'train/0' is (nan|inf) for 'y'; expected a finite number"):
        Wanted(task="scores", kinds=("numbers",)).require(_source(labels, ("x", "y")), "here")


@pytest.mark.parametrize(
    ("labels", "kinds", "said"),
    [
        (NUMBERS, ("tags",), "its labels are numbers, and task mine takes 0, 1 or -1"),
        (TAGS, ("index",), "its labels are 0, 1 or -1 .*, and task mine takes one class per sample"),
        (np.arange(4), ("tags",), "its labels are one class per sample, and task mine takes 0, 1"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused_with_both_names(labels, kinds, said):
    with pytest.raises(DataError, match=said):
        Wanted(task="mine", kinds=kinds).require(_source(labels, ("x", "y")), "here")


def test_labels_per_class_are_of_classes(tmp_path):
    data = _prepare(_source(TAGS, ("a", "b", "c")), tmp_path / "data", "multilabel", "tags")
    with pytest.raises(DataError, match=r"labels_per_class is 2, and labels are tags; .* set it to null"):
        keep_labels(data.train, data.classes, per_class=2, seed=0)
