"""Token ids of many texts at once: each distinct piece is tokenised once, and its ids are looked up.

    pieces (W,) -> ids of each piece, one after the other -> cut to the room -> (B, length) with special ids

Where a tokenizer joins what white space divides, or a text has words without white space between them, the
whole text is tokenised instead, with the same result as the tokenizer itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import ranges
from pipeline.modalities.text.tokenizers import Frame, Tokenizer
from pipeline.modalities.text.words import Ids, Words, pieces_of, with_room

Tokens = NDArray[np.int32]
_ROOM = 1 << 12


class Lookup:
    """Ids of the pieces of a dictionary, found when they are first needed.

    Args:
        tokenizer: gives the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()
        # Ids of piece p: flat[starts[p] : starts[p] + counts[p]]. Arrays have room to grow.
        self._flat = np.zeros(_ROOM, np.int32)
        self._starts, self._counts = np.zeros(_ROOM, np.int64), np.zeros(_ROOM, np.int64)
        self._used = self._known = 0

    def ids(self, pieces: Sequence[str]) -> tuple[Ids, Ids, Tokens]:
        """Return starts and counts (P,), and the flat ids, of all pieces of a dictionary."""
        if len(pieces) > self._known:
            with self._lock:
                self._extend(pieces[self._known : len(pieces)])
        return self._starts, self._counts, self._flat

    def _extend(self, pieces: Sequence[str]) -> None:
        starts, counts, flat = flattened(self._tokenizer.encode(pieces))
        known, used = self._known + len(pieces), self._used + len(flat)
        self._flat = with_room(self._flat, used)
        self._counts, self._starts = with_room(self._counts, known), with_room(self._starts, known)
        self._flat[self._used : used] = flat
        self._counts[self._known : known], self._starts[self._known : known] = counts, starts + self._used
        # Last: a reader that finds a piece known finds its ids in place.
        self._used, self._known = used, known


def flattened(ids: Sequence[Sequence[int]]) -> tuple[Ids, Ids, Tokens]:
    """Return starts and counts (n,), and all ids one after the other."""
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter((one for some in ids for one in some), np.int32, int(counts.sum()))
    return np.cumsum(counts) - counts, counts, flat


class Encoder:
    """Token ids (B, length) of words, for one tokenizer.

    Args:
        tokenizer: gives the ids.
        length: ids per sample, special ones included.
        keeps_end: cut the beginning of long texts instead of their end.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, *, keeps_end: bool) -> None:
        self._tokenizer, self._length, self._keeps_end = tokenizer, length, keeps_end
        self._lookup = Lookup(tokenizer)
        self._frames: dict[int, Frame] = {}
        self.by_piece = tokenizer.by_piece

    def encode(self, words: Words) -> Tokens:
        """Return the ids (B, length) of samples, padded."""
        words = words.begun()
        starts, counts, flat, owner = self._of_pieces(words)
        if self._tokenizer.kind == "file":
            starts, counts, flat, owner = self._mended(words, starts, counts, flat, owner)
        # Gather the ids of all segments (M,), one after the other. Three words with starts [0, 4, 2] and
        # counts [2, 1, 2] in flat:
        #   repeat(starts, counts)  [0, 0, 4, 2, 2]
        #   ranges(counts)          [0, 1, 0, 0, 1]
        #   their sum               [0, 1, 4, 2, 3], places in flat
        owner = np.repeat(owner, counts)
        flat = flat[np.repeat(starts, counts) + ranges(counts)]
        return self._framed(flat, owner, words)

    def _of_pieces(self, words: Words) -> tuple[Ids, Ids, Tokens, Ids]:
        """Return start and count of each word's ids (W,), the flat ids, and each word's segment (W,)."""
        starts, counts, flat = self._lookup.ids(words.dictionary.pieces)
        if not words.typed:
            return starts[words.ids], counts[words.ids], flat, words.owner
        # Typed words are in no dictionary: their ids stand behind the used part of a copy. Pieces 0 and 2
        # have ids [7, 8] and [5, 6], and typed word 0, whose number is ~0 = -1, has [4]:
        #   words.ids   [2, -1, 0]
        #   taken       [5, 6, 7, 8]        the known words, in order of the text
        #   all_starts  [0, 4, 2]           place 4 is behind taken
        #   all_counts  [2, 1, 2]           of [5, 6, 7, 8, 4]
        own_starts, own_counts, own_flat = flattened(self._tokenizer.encode(words.typed))
        typed, place = words.ids < 0, ~words.ids
        known = np.where(typed, 0, words.ids)
        taken = flat[np.repeat(starts[known], counts[known] * ~typed) + ranges(counts[known] * ~typed)]
        all_counts = np.where(typed, own_counts[np.where(typed, place, 0)], counts[known])
        ends = np.cumsum(np.where(typed, 0, counts[known]))
        behind = len(taken) + own_starts[np.where(typed, place, 0)]
        all_starts = np.where(typed, behind, ends - np.where(typed, 0, counts[known]))
        return all_starts, all_counts, np.concatenate([taken, own_flat]), words.owner

    def _mended(
        self, words: Words, starts: Ids, counts: Ids, flat: Tokens, owner: Ids
    ) -> tuple[Ids, Ids, Tokens, Ids]:
        """Replace the ids of segments that have to be tokenised as a whole."""
        glued = _glued_segments(words) if self.by_piece else np.arange(len(words.samples))
        if not len(glued):
            return starts, counts, flat, owner
        segments = words.segments()
        own_starts, own_counts, own_flat = flattened(
            self._tokenizer.encode([segments[s] for s in glued.tolist()])
        )
        # Owners [0, 0, 1, 1, 2], segment 1 glued: its two words go, and one entry with the ids of the whole
        # segment, behind flat, takes their place. The stable sort gives owners [0, 0, 1, 2].
        kept = ~np.isin(owner, glued)
        order = np.argsort(np.concatenate([owner[kept], glued]), kind="stable")
        return (
            np.concatenate([starts[kept], len(flat) + own_starts])[order],
            np.concatenate([counts[kept], own_counts])[order],
            np.concatenate([flat, own_flat]),
            np.concatenate([owner[kept], glued])[order],
        )

    def _framed(self, flat: Tokens, owner: Ids, words: Words) -> Tokens:
        """Cut the ids of segments, and put special ids and padding around them."""
        count = int(words.samples[-1]) + 1 if len(words.samples) else 0
        out = np.full((count, self._length), self._tokenizer.pad, np.int32)
        texts = int(words.part.max(initial=0)) + 1
        frame = self._frame(texts)
        lengths = np.bincount(owner, minlength=len(words.samples))
        kept = _kept(lengths, words, frame.room(self._length, texts), texts)
        place = ranges(lengths)
        if self._keeps_end:
            place = place - (lengths - kept)[owner]
        # E.g. before 1, between 1, kept [3, 2]: first text in columns 1-3, second in 5-6, after in 7.
        begin = np.full(len(lengths), len(frame.before), np.int64)
        second = np.flatnonzero(words.part == 1)
        begin[second] += kept[second - 1] + len(frame.between)
        inside = (place >= 0) & (place < kept[owner])
        out[words.samples[owner[inside]], (begin[owner] + place)[inside]] = flat[inside]
        out[:, : len(frame.before)] = frame.before
        _put(out, words.samples[second], begin[second] - len(frame.between), frame.between)
        last = np.flatnonzero(np.append(np.diff(words.samples), 1))
        _put(out, words.samples[last], begin[last] + kept[last], frame.after)
        return out

    def _frame(self, texts: int) -> Frame:
        if texts not in self._frames:
            self._frames[texts] = self._tokenizer.frame(texts)
        return self._frames[texts]


def _put(out: Tokens, rows: Ids, columns: Ids, ids: Sequence[int]) -> None:
    for offset, one in enumerate(ids):
        out[rows, columns + offset] = one


def _kept(lengths: Ids, words: Words, room: int, texts: int) -> Ids:
    """Return the number of ids that each segment (S,) keeps.

    Of two texts the longer one is cut first, as `longest_first` of the library `tokenizers`.
    """
    room = max(0, room)
    if texts == 1:
        return np.minimum(lengths, room)
    # One text of samples that have two: S = 2 B.
    one, two = lengths[0::2], lengths[1::2]
    short = np.minimum(one, two)
    # Three cases: nothing is cut; only the longer text is; both are, to halves. With room 10:
    #   lengths 3, 4  -> 3, 4      lengths 3, 12 -> 3, 7      lengths 8, 9 -> 5, 5
    less = np.where(short > room, room, np.maximum(short, room - short))
    more_cut = short + less > room
    new_short, new_long = np.where(more_cut, room // 2, short), np.where(more_cut, room - room // 2, less)
    fits = one + two <= room
    swapped = one > two
    kept = np.empty_like(lengths)
    kept[0::2] = np.where(fits, one, np.where(swapped, new_long, new_short))
    kept[1::2] = np.where(fits, two, np.where(swapped, new_short, new_long))
    return kept


def _glued_segments(words: Words) -> Ids:
    """Return the segments (n,) with a word that no white space divides from the one before."""
    first = np.diff(words.owner, prepend=-1) > 0
    bare = words.dictionary.bare(np.maximum(words.ids, 0)) == words.ids
    for place in np.flatnonzero(words.ids < 0).tolist():
        bare[place] = not words.typed[~words.ids[place]][:1].isspace()
    return np.unique(words.owner[bare & ~first])


def agrees(tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
    """Whether texts have the ids of their pieces, one after the other."""
    whole = tokenizer.encode(texts)
    parts = [[one for ids in tokenizer.encode(_joined(text)) for one in ids] for text in texts]
    return whole == parts


def _joined(text: str) -> list[str]:
    """Return the runs of a text between white space, each with the white space before it."""
    runs: list[str] = []
    for piece in pieces_of(text):
        if runs and not piece[:1].isspace():
            runs[-1] += piece
        else:
            runs.append(piece)
    return [run.lstrip() if not place else run for place, run in enumerate(runs)]
