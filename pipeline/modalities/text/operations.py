"""Carry out the operations of a view on the words of many samples at once, with integers only.

Every decision about a word is drawn at (seed, view, sample key, word number), so it depends neither on the
other words nor on the batch. Decisions about a segment, e.g. where a span begins, are drawn once a segment.
A segment is one of the one or two texts of a sample; its words are numbered from 0, and lanes differ
between the two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import ranges
from pipeline.core.random import Lane, below, chance, draw, lanes_of
from pipeline.core.random import Words as RandomWords
from pipeline.modalities.text.spec import RandomCrop, RandomSwap, TextViews
from pipeline.modalities.text.words import MASK, Ids, Words, divided

# A share of words in fixed point: 1 is 2^16.
_UNIT = 1 << 16
_ERRORS, _REPLACED = 4, 3
_CASES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("lower", str.lower),
    ("upper", str.upper),
    ("capital", str.capitalize),
)


def carry_out(spec: TextViews, view: int, keys: NDArray[np.uint64], words: Words) -> Words:
    """Return the words of one view.

    Args:
        spec: the views.
        view: number of the view.
        keys: (B,) keys of the samples.
        words: their un-augmented words.
    """
    draws = _Draws(spec.seed, view, keys, words)
    if spec.random_crop is not None:
        words = _crop(words, draws, spec.random_crop)
    if not any((spec.random_deletion, spec.mask, spec.character_noise, spec.case, spec.random_swap)):
        return words
    # One draw a word decides four things; which word stands where no longer matters.
    chosen = draws.of_words(words, Lane.WORDS)
    if spec.random_deletion is not None:
        kept = _kept(words, chosen[0], spec.random_deletion.probability)
        words, chosen = words.kept(kept), chosen[:, kept]
    if spec.random_swap is not None:
        order = _order(words, draws, spec.random_swap)
        words, chosen = _exchanged(words, order), chosen[:, order]
    if spec.mask is not None:
        words = _masked(words, chance(chosen[1], spec.mask.probability))
    if spec.character_noise is not None:
        words = _mistyped(words, draws, chance(chosen[2], spec.character_noise.probability))
    if spec.case is not None:
        words = _recased(words, chosen[3], spec.case.probability)
    return words


class _Draws:
    """Random numbers of the words and segments of B samples."""

    def __init__(self, seed: int, view: int, keys: NDArray[np.uint64], words: Words) -> None:
        self._seed, self._view = seed, view
        self._keys, self._part = keys[words.samples], words.part

    def of_words(self, words: Words, lane: Lane) -> RandomWords:
        """Return four numbers (4, W) for each word."""
        lanes = lanes_of(lane, words.number) + self._part[words.owner].astype(np.uint64)
        return draw(seed=self._seed, view=self._view, keys=self._keys[words.owner], lane=lanes)

    def of_segments(self, segments: Ids, lane: Lane, numbers: Ids) -> RandomWords:
        """Return four numbers (4, n) for numbered decisions (n,) about segments (n,)."""
        lanes = lanes_of(lane, numbers) + self._part[segments].astype(np.uint64)
        return draw(seed=self._seed, view=self._view, keys=self._keys[segments], lane=lanes)


def _crop(words: Words, draws: _Draws, crop: RandomCrop) -> Words:
    """Keep a span: e.g. of 10 words with share 0.5 and start 3, words 3 to 7."""
    low, high = (max(1, round(share * _UNIT)) for share in crop.scale)
    segments = np.arange(len(words.samples))
    share, start, *_ = draws.of_segments(segments, Lane.WORD_SPAN, np.zeros_like(segments))
    lengths = words.lengths.astype(np.uint64)
    # Rounded half up: 3 words of share 0.5 keep 2.
    wanted = (
        lengths * (below(share, high - low + 1) + np.uint64(low)) + np.uint64(_UNIT // 2)
    ) // np.uint64(_UNIT)
    kept = np.maximum(wanted, np.uint64(1))
    first = below(start, lengths - np.minimum(kept, lengths) + np.uint64(1))
    place = ranges(words.lengths).astype(np.uint64) - first[words.owner]
    # An unsigned difference: words before the span are far above its length.
    return words.kept(place < kept[words.owner])


def _kept(words: Words, numbers: NDArray[np.uint64], probability: float) -> NDArray[np.bool_]:
    """Return which words (W,) stay; where all would go, the one with the highest number does not."""
    kept = ~chance(numbers, probability)
    left = np.bincount(words.owner, weights=kept, minlength=len(words.samples))
    for segment in np.flatnonzero(left == 0).tolist():
        own = np.flatnonzero(words.owner == segment)
        if len(own):
            kept[own[numbers[own].argmax()]] = True
    return kept


def _exchanged(words: Words, order: Ids) -> Words:
    """Return the words in another order (W,); white space stays where it is."""
    # "a b\nc" with order [2, 1, 0] is "c b\na": the first word has no white space to take along.
    ids, dictionary = words.ids[order], words.dictionary
    gaps = dictionary.changed(words.ids, "gap", lambda piece: divided(piece)[0])
    moved = np.flatnonzero(gaps != gaps[order])
    pieces = dictionary.pieces
    ids[moved] = dictionary.number(
        [
            pieces[gap] + divided(pieces[one])[1]
            for gap, one in zip(gaps[moved].tolist(), ids[moved].tolist(), strict=True)
        ]
    )
    return words.with_words(ids, number=words.number[order])


def _order(words: Words, draws: _Draws, swap: RandomSwap) -> Ids:
    """Return the order (W,) of the words after the exchanges, segment by segment."""
    lengths = words.lengths
    starts = np.cumsum(lengths) - lengths
    times = np.where(lengths > 1, (lengths * round(swap.share * _UNIT) + _UNIT // 2) // _UNIT, 0)
    # All exchanges (X,): e.g. two of segment 0 and one of segment 2 have the numbers 0, 1, 0.
    segments, numbers = np.repeat(np.arange(len(times)), times), ranges(times)
    one, other, *_ = draws.of_segments(segments, Lane.WORD_SWAP, numbers)
    limits = lengths[segments].astype(np.uint64)
    here, there = (starts[segments] + below(drawn, limits).astype(np.int64) for drawn in (one, other))
    order = np.arange(len(words.ids))
    # The k-th exchanges of all segments at once, since segments do not touch each other.
    for number in range(int(times.max(initial=0))):
        now = numbers == number
        first, second = here[now], there[now]
        order[first], order[second] = order[second], order[first]
    return order


def _masked(words: Words, chosen: NDArray[np.bool_]) -> Words:
    ids = words.ids.copy()
    ids[chosen] = words.dictionary.changed(ids[chosen], "mask", lambda piece: divided(piece)[0] + MASK)
    return words.with_words(ids)


def _mistyped(words: Words, draws: _Draws, chosen: NDArray[np.bool_]) -> Words:
    """Replace the chosen words by words with a typing error.

    The same errors of frequent words come again and again, so they are numbered like other words.
    """
    mask = words.dictionary.changed(words.ids[chosen], "is mask", _only_mask)
    places = np.flatnonzero(chosen)[mask != words.ids[chosen]]
    some = words.with_words(words.ids[places], words.owner[places], words.number[places])
    kind, place, other, _ = draws.of_words(some, Lane.WORD_NOISE)
    lengths = words.dictionary.word_lengths(some.ids).astype(np.uint64)
    errors = np.stack([below(kind, _ERRORS), below(place, lengths), below(other, lengths)]).astype(np.int64)
    # Only a replacement needs a second place; equal errors then have equal coordinates.
    errors[2] *= errors[0] == _REPLACED
    pieces, ids_of, told = words.dictionary.pieces, some.ids.tolist(), errors.T.tolist()

    def change(one: int) -> str:
        space, word = divided(pieces[ids_of[one]])
        return space + mistyped(word, *told[one])

    if words.dictionary.is_full:
        typed = [change(one) for one in range(len(places))]
        ids = words.ids.copy()
        ids[places] = -1 - np.arange(len(typed))
        return words.with_words(ids, typed=typed)
    # 2 bits of kind, 15 of each place, and the piece; longer words share errors only among themselves.
    keys = ((some.ids * _ERRORS + errors[0]) << 30) + (errors[1] << 15) + errors[2]
    ids = words.ids.copy()
    ids[places] = words.dictionary.typed(keys.tolist(), change)
    return words.with_words(ids)


def _only_mask(piece: str) -> str:
    """Return a masked piece itself, and nothing for all others."""
    return piece if divided(piece)[1] == MASK else ""


def mistyped(word: str, kind: int, place: int, other: int) -> str:
    """Return a word with one typing error.

    Args:
        word: at least one character.
        kind: 0 leaves a character out, 1 doubles it, 2 exchanges it with the next, 3 replaces it.
        place: of the character.
        other: place of the character that replaces it.

    >>> [mistyped("word", kind, 1, 3) for kind in range(4)]
    ['wrd', 'woord', 'wrod', 'wdrd']
    """
    before, here, after = word[:place], word[place], word[place + 1 :]
    if kind == 0:
        return before + after or word
    if kind == 1:
        return before + here + here + after
    if kind == 2 and after:
        return before + after[0] + here + after[1:]
    return before + word[other] + after


def _recased(words: Words, numbers: NDArray[np.uint64], probability: float) -> Words:
    chosen = np.flatnonzero(chance(numbers, probability))
    # Below the bound of the probability, numbers are uniform: a third of them for each case.
    bound = max(1, round(probability * (1 << 32)))
    kinds = numbers[chosen] * np.uint64(len(_CASES)) // np.uint64(bound)
    ids, typed = words.ids.copy(), list(words.typed)
    for kind, (name, change) in enumerate(_CASES):
        places = chosen[kinds == kind]
        known = places[ids[places] >= 0]
        ids[known] = words.dictionary.changed(ids[known], name, _of_word(change))
        for place in ids[places[ids[places] < 0]].tolist():
            typed[~place] = _of_word(change)(typed[~place])
    return words.with_words(ids, typed=typed)


def _of_word(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return a change of a piece that leaves its white space, and a mask, alone."""

    def changed(piece: str) -> str:
        space, word = divided(piece)
        return piece if word == MASK else space + change(word)

    return changed
