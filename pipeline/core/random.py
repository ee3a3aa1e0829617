"""Counter-based random integers: every number is a pure function of its coordinates.

A view's parameters must come out the same on any machine, in any order, for any subset of the
samples, so there is no generator with a state: Philox4x32-10 maps a counter and a key to four
32-bit words. The key is the seed; the counter is (sample key, view, lane), and every consumer draws
from a lane of its own, so adding one consumer changes nobody else's numbers.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the Random123 library,
whose known answers the tests check).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = 1 << 32


class Lane(IntEnum):
    """Who draws where: a consumer's first lane; it may use 256 of them. Numbers are never used again."""

    CROP = 1 << 8
    FLIP = 2 << 8
    ORDER = 3 << 8
    VALIDATION = 4 << 8
    RAND_AUGMENT = 5 << 8
    TRIVIAL_AUGMENT = 6 << 8
    RANDOM_AFFINE = 7 << 8
    COLOR_JITTER = 8 << 8
    GRAYSCALE = 9 << 8
    POSTERIZE = 10 << 8
    SOLARIZE = 11 << 8
    SHARPNESS = 12 << 8
    AUTOCONTRAST = 13 << 8
    EQUALIZE = 14 << 8
    RANDOM_ERASING = 15 << 8
    MIXING = 16 << 8
    GROUPS = 17 << 8
    LABELS = 18 << 8
    OWN = 19 << 8
    TEST = 20 << 8


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> Words:
    """Return Philox4x32-10 of the counters under one key.

    Args:
        counter: four arrays (N,) of 32-bit words, held in uint64.
        key: two 32-bit words.

    Returns:
        (4, N) uint64 array of 32-bit words.

    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c2 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def draw(*, seed: int, view: int, keys: Words, lane: int) -> Words:
    """Return four random 32-bit words for each sample.

    Args:
        seed: 64-bit unsigned.
        view: index of the view or epoch, 0 <= view < 2**32.
        keys: (N,) uint64 sample keys.
        lane: the consumer's own number, 0 <= lane < 2**32.

    Returns:
        (4, N) uint64 array of words below 2**32.

    """
    constant = np.zeros(keys.shape, np.uint64)
    counter = (keys & _LOW, keys >> _SHIFT, constant + np.uint64(view), constant + np.uint64(lane))
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def below(words: Words, limit: Words | int) -> Words:
    """Map 32-bit words to integers in [0, limit), with a bias below limit / 2**32.

    Args:
        words: uint64 array of 32-bit words.
        limit: exclusive upper bound, 1 <= limit <= 2**32; an integer or an array like `words`.

    """
    result: Words = (words * np.asarray(limit, np.uint64)) >> _SHIFT
    return result


def between(words: Words, low: int, high: int) -> NDArray[np.int64]:
    """Map 32-bit words to integers in [low, high]."""
    return below(words, high - low + 1).astype(np.int64) + low


def chance(words: Words, probability: float) -> NDArray[np.bool_]:
    """Map 32-bit words to whether something of this probability, in [0, 1], happens."""
    happens: NDArray[np.bool_] = words < np.uint64(round(probability * _UNIT))
    return happens


@dataclass(frozen=True, slots=True)
class Draws:
    """The random words of one view of N samples.

    Args:
        seed: 64-bit unsigned.
        view: index of the view.
        keys: (N,) uint64 sample keys.
    """

    seed: int
    view: int
    keys: Words

    def words(self, lane: int) -> Words:
        """Return the four words (4, N) of a lane."""
        return draw(seed=self.seed, view=self.view, keys=self.keys, lane=lane)

    def __len__(self) -> int:
        return len(self.keys)


def permutation(*, seed: int, epoch: int, keys: Words, lane: int) -> NDArray[np.int64]:
    """Return the order of an epoch: positions sorted by each sample's own random 64-bit number.

    The relative order of two samples depends on these two alone, so a subset keeps the order that it
    has in the whole.
    """
    high, low, *_ = draw(seed=seed, view=epoch, keys=keys, lane=lane)
    return np.lexsort((keys, low, high)).astype(np.int64)
