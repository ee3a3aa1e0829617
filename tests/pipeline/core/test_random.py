"""Random numbers: Random123's known answers, purity, range and uniformity."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core import random
from pipeline.core.random import below, draw, permutation, philox4x32

# counter, key, answer: kat_vectors of Random123, philox4x32 10.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip
KEYS = np.random.default_rng(0).integers(0, 2**64, 4096, np.uint64)


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    arrays = tuple(np.array([word], np.uint64) for word in _words(counter))
    k0, k1 = _words(key)
    assert philox4x32(arrays, (k0, k1))[:, 0].tolist() == _words(answer)


def test_philox_of_many_counters_is_philox_of_each():
    counters = np.array([_words(counter) for counter, _, _ in KNOWN_ANSWERS], np.uint64).T
    together = philox4x32(tuple(counters), (1, 2))
    for row in range(len(KNOWN_ANSWERS)):
        alone = philox4x32(tuple(counters[:, row : row + 1]), (1, 2))
        assert together[:, row].tolist() == alone[:, 0].tolist()


def test_draw_puts_sample_view_lane_and_seed_where_they_are_documented():
    key, seed, view, lane = 0x85A308D3243F6A88, 0x299F31D0A4093822, 0x13198A2E, 0x03707344
    words = draw(seed=seed, view=view, keys=np.array([key], np.uint64), lane=lane)
    assert words[:, 0].tolist() == _words(KNOWN_ANSWERS[2][2])


def test_draw_of_a_subset_in_another_order_is_the_subset_of_the_draw():
    rows = np.random.default_rng(1).permutation(len(KEYS))[:100]
    whole = draw(seed=3, view=7, keys=KEYS, lane=256)
    assert np.array_equal(draw(seed=3, view=7, keys=KEYS[rows], lane=256), whole[:, rows])


def test_draw_leaves_its_keys_as_they_are():
    keys = KEYS.copy()
    draw(seed=3, view=7, keys=keys, lane=256)
    assert np.array_equal(keys, KEYS)


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"seed": 3 + (1 << 32)}, {"view": 8}, {"lane": 257}, {"keys": KEYS ^ np.uint64(1)},
     {"keys": KEYS ^ np.uint64(1 << 63)}],
)  # fmt: skip
def test_draw_depends_on_every_coordinate(other):
    coordinates = {"seed": 3, "view": 7, "keys": KEYS, "lane": 256}
    same = draw(**coordinates) == draw(**{**coordinates, **other})
    assert same.mean() < 0.001


def test_draw_takes_the_largest_seed_and_view():
    words = draw(seed=(1 << 64) - 1, view=(1 << 32) - 1, keys=KEYS, lane=(1 << 32) - 1)
    assert words.dtype == np.uint64
    assert int(words.max()) < 1 << 32


def test_draw_of_no_samples_is_empty():
    assert draw(seed=0, view=0, keys=KEYS[:0], lane=0).shape == (4, 0)


def test_the_four_words_are_uniform_and_uncorrelated():
    shares = draw(seed=0, view=0, keys=KEYS, lane=0) / 2**32
    assert np.abs(shares.mean(1) - 0.5).max() < 5 / np.sqrt(12 * len(KEYS))
    assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 5 / np.sqrt(len(KEYS))


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 1000, 2**32])
def test_below_stays_in_its_range(limit):
    words = np.array([0, 1, 2**31, 2**32 - 1], np.uint64)
    values = below(words, limit)
    assert int(values.min()) == 0
    assert int(values.max()) == limit - 1


def test_below_takes_a_limit_for_each_word():
    words = np.full(3, 2**32 - 1, np.uint64)
    assert below(words, np.array([1, 10, 100], np.uint64)).tolist() == [0, 9, 99]


def test_below_is_uniform():
    counts = np.bincount(below(draw(seed=0, view=0, keys=KEYS, lane=0)[0], 8).astype(int))
    expected = len(KEYS) / 8
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 99.9 % quantile for 7 degrees of freedom


def test_permutation_holds_every_position_once():
    order = permutation(seed=0, epoch=0, keys=KEYS, lane=0)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(len(KEYS)))


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}, {"lane": 1}])
def test_permutation_differs_by_epoch_seed_and_lane(other):
    coordinates = {"seed": 0, "epoch": 0, "keys": KEYS, "lane": 0}
    same = permutation(**coordinates) == permutation(**{**coordinates, **other})
    assert same.sum() < 10  # one in expectation


def test_a_subset_keeps_the_order_that_it_has_in_the_whole():
    chosen = np.sort(np.random.default_rng(2).permutation(len(KEYS))[:500])
    whole = KEYS[permutation(seed=5, epoch=2, keys=KEYS, lane=0)]
    part = KEYS[chosen][permutation(seed=5, epoch=2, keys=KEYS[chosen], lane=0)]
    assert np.array_equal(part, whole[np.isin(whole, KEYS[chosen])])


def test_the_order_of_keys_does_not_depend_on_where_they_stand():
    shuffled = KEYS[::-1]
    whole = KEYS[permutation(seed=5, epoch=2, keys=KEYS, lane=0)]
    assert np.array_equal(shuffled[permutation(seed=5, epoch=2, keys=shuffled, lane=0)], whole)


def test_tied_numbers_are_ordered_by_the_sample_key(monkeypatch):
    numbers = np.array([3, 1, 3, 1, 2], np.uint64)
    words = np.stack([np.zeros(5, np.uint64), numbers, numbers, numbers])
    monkeypatch.setattr(random, "draw", lambda **_: words)
    keys = np.array([9, 8, 1, 2, 5], np.uint64)
    assert permutation(seed=0, epoch=0, keys=keys, lane=0).tolist() == [3, 1, 4, 2, 0]
