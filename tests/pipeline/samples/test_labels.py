"""Which labels students are given: a nested, pure function of seed and keys."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.samples.labels import keep_labels

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def images(pack_images):
    """60 images: classes by turns, and every fifth without a label."""
    pixel = np.zeros((1, 1, 1), np.uint8)
    return pack_images([pixel] * 60, [-1 if row % 5 == 4 else row % 3 for row in range(60)])


def _kept(images, per_class, seed=0) -> set[int]:
    """The keys of the images that keep their label."""
    labels = keep_labels(images, CLASSES, per_class=per_class, seed=seed)
    return set(images.keys[labels != -1].tolist())


@pytest.mark.parametrize("per_class", [1, 5, 16])
def test_so_many_labels_of_each_class_are_kept_as_they_are(images, per_class):
    labels = keep_labels(images, CLASSES, per_class=per_class, seed=0)
    known = labels != -1
    assert np.bincount(labels[known]).tolist() == [per_class] * 3
    assert np.array_equal(labels[known], images.labels[known])


def test_nothing_of_the_images_changes(images):
    before = images.labels.copy(), images.digest()
    keep_labels(images, CLASSES, per_class=1, seed=0)
    assert np.array_equal(images.labels, before[0])
    assert images.digest() == before[1]


def test_labels_kept_for_a_number_are_kept_for_every_larger_one(images):
    kept = [_kept(images, per_class) for per_class in range(1, 17)]
    assert all(few < more for few, more in pairwise(kept))


def test_the_order_of_the_split_does_not_matter(images):
    shuffled = images.subset(np.random.default_rng(0).permutation(60))
    assert _kept(shuffled, 4) == _kept(images, 4)


def test_images_of_other_classes_and_without_labels_do_not_matter(images):
    ants = images.subset(np.flatnonzero(images.labels == 0))
    alone = keep_labels(ants, CLASSES[:1], per_class=4, seed=0)
    assert set(ants.keys[alone != -1].tolist()) == _kept(images, 4) & set(ants.keys.tolist())


def test_another_seed_keeps_others(images):
    assert _kept(images, 4, seed=0) != _kept(images, 4, seed=1)


def test_the_smallest_class_is_named_with_what_it_has(images):
    few = replace(images, labels=np.where(images.keys % 7 == 0, 1, np.where(images.labels == 1, 2, 0)))
    count = int((few.labels == 1).sum())
    expected = rf"labels_per_class is 16, but class 'bee' has only {count} labelled .*lower it"
    with pytest.raises(DataError, match=expected):
        keep_labels(few, CLASSES, per_class=16, seed=0)


def test_a_class_that_only_unlabelled_images_could_be_of_is_named(images):
    with pytest.raises(DataError, match="class 'dog' has only 0 labelled"):
        keep_labels(images, (*CLASSES, "dog"), per_class=1, seed=0)
