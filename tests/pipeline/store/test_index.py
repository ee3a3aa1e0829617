"""Samples found by key: in the store's order or any other, present or not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.store.index import ABSENT, SampleIndex

COUNT = 1000
KEYS = np.random.default_rng(0).integers(0, 2**64, COUNT, dtype=np.uint64)
INDEX = SampleIndex(KEYS, KEYS)
SHUFFLED = np.random.default_rng(1).permutation(COUNT)


@pytest.mark.parametrize(
    "rows",
    [np.arange(COUNT), np.arange(10), SHUFFLED, SHUFFLED[:7], np.arange(COUNT)[::-3], np.arange(0)],
    ids=["all", "first", "shuffled", "some", "backwards", "none"],
)
def test_present_keys_are_found_in_any_order(rows):
    assert INDEX.find(KEYS[rows]).tolist() == rows.tolist()


def test_absent_keys_are_marked_and_the_others_found():
    asked = KEYS[SHUFFLED].copy()
    gone = np.zeros(COUNT, np.bool_)
    gone[[0, 10, COUNT - 1]] = True
    # The smallest key, the largest, and one in between, none of which is in the index.
    asked[gone] = 0, 2**64 - 1, KEYS[5] + np.uint64(1)
    assert INDEX.find(asked).tolist() == np.where(gone, ABSENT, SHUFFLED).tolist()


def test_nothing_is_found_in_an_empty_index():
    empty = SampleIndex(KEYS[:0], KEYS[:0])
    assert empty.find(KEYS[:3]).tolist() == [ABSENT] * 3


ALIKE = KEYS & np.uint64(2**64 - 2**10)


@pytest.mark.parametrize(
    "keys",
    [
        ALIKE + np.uint64(7) * (np.arange(COUNT, dtype=np.uint64) % np.uint64(3)),
        # Pairs that differ in the lowest bits alone, the larger one first, and neighbours of three.
        np.repeat(ALIKE[::2], 2) + np.tile(np.array([9, 3], np.uint64), COUNT // 2),
        np.concatenate([ALIKE[:5], ALIKE[:5] + np.uint64(2), ALIKE[:5] + np.uint64(1)]),
        np.concatenate([ALIKE[:5] + np.uint64(low) for low in (3, 2, 1)]),
        np.arange(COUNT, dtype=np.uint64)[::-1] + np.uint64(2**63),
    ],
    ids=["few", "pairs", "three", "descending", "one block"],
)
def test_keys_that_differ_in_the_lowest_bits_are_told_apart(keys):
    shuffled = np.random.default_rng(2).permutation(len(keys))
    assert SampleIndex(keys, keys).find(keys[shuffled]).tolist() == shuffled.tolist()
    assert SampleIndex(keys, keys).find(keys[shuffled] ^ np.uint64(1 << 40)).tolist() == [ABSENT] * len(
        keys
    )


def test_samples_of_a_split_are_found_from_the_other_side():
    """Rows 0 to 9 have no sample in the split, and two samples of the split have no row."""
    order = np.concatenate([SHUFFLED[SHUFFLED >= 10], [0]])
    keys = KEYS[order]
    keys[[3, len(keys) - 1]] = 1, 2
    images = SimpleNamespace(keys=keys)
    expected = np.full(COUNT, ABSENT)
    known = np.setdiff1d(np.arange(len(keys)), [3, len(keys) - 1])
    expected[order[known]] = known
    assert INDEX.samples_of(images).tolist() == expected.tolist()


def test_an_answer_is_kept_for_the_same_array_alone():
    keys = KEYS[SHUFFLED]
    first = INDEX.find(keys)
    assert INDEX.find(keys) is first
    other = keys[::-1].copy()
    assert INDEX.find(other).tolist() == SHUFFLED[::-1].tolist()
    assert INDEX.find(keys).tolist() == first.tolist()
