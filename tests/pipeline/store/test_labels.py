"""Labels beside contents: compared for information, recovered for figures, never refused on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.codecs.blend import Blend
from pipeline.core.errors import MismatchError, StoreError
from pipeline.core.hashing import content_digest
from pipeline.dump.average import write_ensemble
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import splits_of
from pipeline.dump.verify import verify
from pipeline.evaluation.context import RunContext
from pipeline.loading.replay import ReplayDataset
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.label_forms import label_word, label_words
from pipeline.samples.packed import Split
from pipeline.store.index import SampleIndex
from pipeline.store.labels import changed_labels, compared_with, digest_of_present, labels_at_dump, words_of
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.store.upgrade import Upgraded, _told_apart, upgrade
from tests.pipeline.dump.test_growth import content
from tests.pipeline.store.older import to_schema_3, without_labels

TAGS = np.array([[1, 0], [0, 1], [-1, -1], [1, 1]], np.int8)
NUMBERS = np.array([[0.5], [1.0], [np.nan], [2.0]], np.float32)
CLASSES = np.array([0, 1, -1, 2])


def relabelled(images: Split, labels: NDArray[Any]) -> Split:
    """Return a split as `pipeline prepare` makes it with other labels."""
    pairs = zip(map(images.array, range(len(images))), labels, strict=True)
    digests = [content_digest(array, label_word(label)) for array, label in pairs]
    return replace(images, labels=labels, digests=np.array(digests, np.uint64))


def corrected(context: RunContext, *rows: int) -> RunContext:
    """Return the data with the next class for these training and test samples."""
    splits = {}
    for name in ("train", "test"):
        labels = getattr(context.data, name).labels.copy()
        some = [row for row in rows if row < len(labels)]
        labels[some] = (labels[some] + 1) % 3
        splits[name] = relabelled(getattr(context.data, name), labels)
    return replace(context, data=replace(context.data, **splits))


@pytest.fixture(scope="module")
def made(context, teacher, make_spec, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), path)
    return path


@pytest.fixture
def path(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "main.zarr"))


@pytest.fixture
def four(pack_images, random_image) -> Split:
    return pack_images([random_image(4, 4, seed=seed) for seed in range(4)])


@pytest.mark.parametrize("labels", [CLASSES, TAGS, NUMBERS])
def test_labels_of_every_kind_are_compared_and_digests_of_contents_ignore_them(four, labels):
    was, now = relabelled(four, labels), relabelled(four, labels[[0, 3, 2, 3]])
    index = {"train": SampleIndex.of(was)}
    assert changed_labels(index, words_of({"train": was.subset(np.array([3, 1]))})).count == 0
    changes = changed_labels(index, words_of({"train": now}))
    assert changes.to_dict() == {"labels_changed": True, "n_labels_changed": 1}
    assert str(changes).startswith("1 of 4 labels has changed since the dump")
    assert index["train"].digest() == SampleIndex.of(now).digest()
    assert index["train"].find_unchanged(now, "main.zarr").tolist() == [0, 1, 2, 3]
    older = SampleIndex.of(was, labels=False)
    assert changed_labels({"train": older}, words_of({"train": now})).changed is None
    with pytest.raises(MismatchError, match=r"'train/1' has different content or another label.*--upgrade"):
        older.find_unchanged(now, "main.zarr")


@pytest.mark.parametrize(
    ("labels", "known"), [(CLASSES, CLASSES[1]), (TAGS, [-1, -1]), (NUMBERS, [np.nan])]
)
def test_figures_are_by_the_label_of_the_dump_or_by_none(four, labels, known):
    index = SampleIndex.of(relabelled(four, labels))
    then = labels_at_dump(index, relabelled(four, labels[[0, 3, 2, 3]]), 3)
    np.testing.assert_array_equal(then[[0, 2, 3]], labels[[0, 2, 3]])
    np.testing.assert_array_equal(then[1], known)
    forged = replace(index, labels=np.full(4, 7))
    if labels.ndim == 1:
        assert labels_at_dump(forged, four, 3).tolist() == [-1] * 4


def test_a_digest_of_labels_depends_on_the_stores_samples_alone(four):
    index = {"train": SampleIndex.of(four.subset(np.array([2, 0])))}
    digest = digest_of_present(index, words_of({"train": four}))
    assert digest == digest_of_present(index, words_of({"train": four.subset(np.array([0, 2, 1]))}))
    assert compared_with(digest, index, words_of({"train": four})).changed is False
    other = words_of({"train": relabelled(four, CLASSES)})
    changes = compared_with(digest, index, other)
    assert changes.to_dict() == {"labels_changed": True, "n_labels_changed": None}
    lacking = words_of({"train": four.subset(np.array([1, 2]))})
    assert compared_with(digest, index, lacking).changed is None
    assert compared_with(None, index, other).changed is None


def test_data_of_an_older_version_has_the_same_digests_of_contents(tiny_folder, tmp_path):
    data = PreparedData.open(tiny_folder)
    images = data.train
    expected = [content_digest(images.array(row), -1) for row in range(len(images))]
    assert images.contents is not None
    assert images.contents.tolist() == expected
    assert replace(images, contents=None).content_digests.tolist() == expected
    columns = dict(np.load(tiny_folder / "train.npz"))
    shutil.copytree(tiny_folder, tmp_path / "older")
    del columns["contents"]
    np.savez(tmp_path / "older/train.npz", **columns)
    older = data.modality.open_split(tmp_path / "older", "train", images.form)
    assert older.contents is None
    assert older.subset(np.arange(2)).content_digests.tolist() == expected[:2]


def test_a_resumed_dump_has_the_bytes_of_one_by_the_first_labels(
    context, teacher, make_spec, made, tmp_path
):
    path, spec = tmp_path / "main.zarr", make_spec("affine8")
    cache_logits(context, teacher, spec, path, part=Slice(0, 2), completes=False)
    cache_logits(corrected(context, 0, 20), teacher, spec, path)
    assert content(path) == content(made)


def test_new_samples_are_stored_with_their_present_labels(path, context, teacher, make_spec):
    extra = context.data.validation
    now = corrected(context, 0).data
    more = relabelled(
        replace(now.train.subset(np.arange(len(extra))), keys=extra.keys), np.zeros(len(extra), np.int64)
    )
    grown = replace(now, train=_joined(now.train, more))
    cache_logits(replace(context, data=grown), teacher, make_spec("affine8"), path)
    store = LogitStore.open(path)
    assert store.label_changes(words_of(splits_of(grown))).count == 2
    assert verify(path).ok


def _joined(first: Split, second: Split) -> Split:
    names = [*first.names, *(f"more/{row}" for row in range(len(second)))]
    columns = {c: np.concatenate([getattr(first, c), getattr(second, c)]) for c in first.columns}
    contents = np.concatenate([first.content_digests, second.content_digests])
    return replace(first, **columns, contents=contents, names=type(first.names).of(names))


def test_lost_labels_are_repaired_from_equal_data_alone(path, context, teacher):
    before = content(path)
    (path / "train/labels/c/0").unlink()
    with pytest.raises(StoreError, match="samples or labels of the data differ from those of the dump"):
        repair(path, corrected(context, 3), teacher)
    repair(path, context, teacher)
    assert content(path) == before


@pytest.mark.parametrize("make_older", [without_labels, to_schema_3])
def test_an_upgrade_finds_the_class_of_the_dump_behind_a_corrected_one(path, context, make_older):
    before, now = content(path), splits_of(corrected(context, 0, 5, 29).data)
    make_older(path, splits_of(context.data))
    with pytest.raises(MismatchError, match="different content or another label"):
        LogitStore.open(path).rows_of(now["train"])
    assert upgrade(path, now) == Upgraded(changed=True, untold=0)
    assert content(path) == before
    assert LogitStore.open(path).label_changes(words_of(now)).count == 6


def test_an_upgrade_leaves_what_the_data_does_not_prove(path, context):
    before, splits = content(path), splits_of(context.data)
    to_schema_3(path, splits)
    train = splits["train"].subset(np.arange(60))
    assert upgrade(path, {**splits, "train": train}) == Upgraded(changed=True, untold=8)
    store, now = LogitStore.open(path), splits_of(corrected(context, 0).data)
    assert verify(path).ok
    assert store.rows_of(splits["train"]).tolist() == store.rows_of(now["train"]).tolist()
    with pytest.raises(MismatchError, match=r"another label in the store \(1 of 68"):
        store.rows_of(corrected(context, 0, 64).data.train)
    assert store.label_changes(words_of(now)).count == 2
    assert upgrade(path, splits) == Upgraded(changed=True, untold=0)
    assert content(path) == before


def test_tags_cannot_be_found_behind_a_digest(four):
    index = SampleIndex.of(relabelled(four, TAGS), labels=False)
    found = _told_apart(index, relabelled(four, TAGS[[0, 3, 2, 3]]), 2)
    assert found.untold.tolist() == [False, True, False, False]
    assert found.digests[1] == index.digests[1]
    assert found.labels is not None
    assert found.labels[[0, 2, 3]].tolist() == label_words(TAGS)[[0, 2, 3]].tolist()


def test_an_ensemble_tells_the_labels_of_its_accuracy(path, context, teacher, make_spec):
    cache_logits(context, teacher, make_spec("fp16"), path.parent / "two.zarr")
    both = write_ensemble(
        path.parent / "both.zarr", ["main.zarr", "two.zarr"], Blend(weights=(1, 1)), context
    )
    assert both.label_changes(words_of(splits_of(context.data))).changed is False
    now = corrected(context, 0)
    changes = type(both).open(path.parent / "both.zarr").label_changes(words_of(splits_of(now.data)))
    assert (changes.changed, changes.count) == (True, None)
    assert both.summary()["labels_digest"] == both.labels
    assert len(both.rows_of(now.data.train)) == len(now.data.train)


def test_classes_in_another_order_are_refused_although_labels_are_free(path, context):
    data = context.data
    assert ReplayDataset(path, data)[0][1] == data.train.labels[0]
    renamed = replace(data, classes=("x", "y", "z"))
    assert ReplayDataset(path, renamed).n_views == 3
    for classes, said in (
        (data.classes[::-1], "classes in another order: class 0 is 'bar-0', and 'bar-2' in the data"),
        ((*data.classes, "new"), "has 3 classes, and the data has 4"),
    ):
        with pytest.raises(MismatchError, match=said):
            ReplayDataset(path, replace(data, classes=classes))
