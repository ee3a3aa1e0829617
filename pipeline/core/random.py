"""Counter-based random integers: every number is a pure function of its coordinates.

A view's parameters must be the same on any machine, in any order, for any subset of the samples. So no
generator has a state: Philox4x32-10 maps a counter and a key to four 32-bit words. The key is the seed; the
counter is (sample key, view, lane). Every consumer draws from a separate lane, so a new consumer leaves all
other numbers unchanged.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the Random123 library,
whose known answers the tests check).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# 32-bit words held in uint64: the product of two words then needs no second array for its high half.
# The cost is twice the memory.
Words = NDArray[np.uint64]

# Constants of Philox4x32-10, from the paper.
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = 1 << 32


class Lane(IntEnum):
    """The first lane of each consumer, which may use 256; a retired number is never reused.

    Numbers below 40 are of images, texts and everything else, 40 to 59 of sounds, 60 to 79 of items.
    """

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
    WORDS = 21 << 8
    WORD_SPAN = 22 << 8
    WORD_SWAP = 23 << 8
    WORD_NOISE = 24 << 8
    CHECKED = 25 << 8
    SHIFT = 40 << 8
    SPEED = 41 << 8
    POLARITY = 42 << 8
    GAIN = 43 << 8
    BACKGROUND_NOISE = 44 << 8
    TIME_MASK = 45 << 8
    FREQUENCY_MASK = 46 << 8
    HISTORY_ORDER = 60 << 8
    HISTORY_CHOICE = 61 << 8
    HISTORY_CROP = 62 << 8
    HISTORY_MASK = 63 << 8
    HISTORY_REORDER = 64 << 8


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
        # (N,) 64-bit products: the high halves are mixed with the key, the low halves are kept.
        # A word below 2^32 times a constant below 2^32 cannot overflow uint64.
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c2 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def draw(*, seed: int, view: int, keys: Words, lane: int | Words) -> Words:
    """Return four random 32-bit words per sample.

    Args:
        seed: 64-bit unsigned.
        view: index of the view or epoch, 0 <= view < 2**32.
        keys: (N,) uint64 sample keys.
        lane: the consumer's number, 0 <= lane < 2**32; or one per key (N,), see `lanes_of`.

    Returns:
        (4, N) uint64 array of words below 2**32.

    """
    # The 128-bit counter, low word first: sample key (two words), view, lane.
    # E.g. key 0x0000000500000007 in view 3, lane CROP + 1: counter (7, 5, 3, 0x101).
    constant = np.zeros(keys.shape, np.uint64)
    counter = (keys & _LOW, keys >> _SHIFT, constant + np.uint64(view), constant + np.uint64(lane))
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def lanes_of(lane: int, numbers: NDArray[np.int64]) -> Words:
    """Return the lane of each part of a sample, e.g. of each word of a text.

    Args:
        lane: the consumer's number, below 2**16.
        numbers: (N,) numbers of the parts within their samples; 65,536 and more begin again at 0.
    """
    # A lane takes the low 16 bits of its counter word; the number of the part takes the high ones.
    high = (numbers.astype(np.uint64) & np.uint64(0xFFFF)) << np.uint64(16)
    lanes: Words = high | np.uint64(lane)
    return lanes


def below(words: Words, limit: Words | int) -> Words:
    """Map 32-bit words to integers in [0, limit), with a bias below limit / 2**32.

    Args:
        words: uint64 array of 32-bit words.
        limit: exclusive upper bound, 1 <= limit <= 2**32; an integer or an array like `words`.

    """
    # Fixed point, no modulo: a word is a fraction of 2^32. E.g. limit 6: 0x80000000 * 6 >> 32 = 3.
    result: Words = (words * np.asarray(limit, np.uint64)) >> _SHIFT
    return result


def between(words: Words, low: int, high: int) -> NDArray[np.int64]:
    """Map 32-bit words to integers in [low, high]."""
    return below(words, high - low + 1).astype(np.int64) + low


def chance(words: Words, probability: float) -> NDArray[np.bool_]:
    """Map 32-bit words to booleans that are true with a probability in [0, 1]."""
    # An integer bound: a comparison in floating point could differ between machines.
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
    """Return the order (N,) of an epoch: positions sorted by a random 64-bit number per sample.

    The relative order of two samples depends only on these two, so a subset keeps its order.
    """
    # Two of the four words (N,) make the 64-bit number.
    high, low, *_ = draw(seed=seed, view=epoch, keys=keys, lane=lane)
    numbers = (high << _SHIFT) | low
    order = np.argsort(numbers)
    # Ties, one in 2^64 pairs, fall back to the sample key, which is unique: the order never depends on the
    # input order. The last key of `lexsort` is the primary one; it takes ten times as long as one sort.
    ascending = numbers[order]
    tied = bool((ascending[1:] == ascending[:-1]).any())
    return np.lexsort((keys, numbers)) if tied else order
