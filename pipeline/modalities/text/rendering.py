"""Render the views of a split of texts for one model: token ids (B, length), and the texts as bytes."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from threading import Lock
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows, spread
from pipeline.core.progress import note
from pipeline.modalities.preprocessing import UsualRenderer
from pipeline.modalities.text.operations import carry_out
from pipeline.modalities.text.spec import TextViews
from pipeline.modalities.text.tokenizers import Tokenizer
from pipeline.modalities.text.tokens import Encoder, agrees
from pipeline.modalities.text.words import BORDER, WordIndex, Words, packed
from pipeline.samples.packed import Split

# Texts on which a tokenizer is tried before its ids are looked up piece by piece.
_TRIED = 64
# Lengths of batches are multiples of this, so that a compiled network sees few of them.
_STEP = 8


class Seen(Protocol):
    """The part of a model's preprocessing that decides rendering."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Gives the token ids."""

    @property
    def max_length(self) -> int:
        """Ids per sample."""

    @property
    def truncation(self) -> Literal["right", "left"]:
        """The end of a long text that is cut."""


class SharedIndex:
    """The word index of a split, made once, on first use, for all models that see the split.

    Args:
        samples: the split.
    """

    def __init__(self, samples: Split) -> None:
        self.samples, self._lock = samples, Lock()

    @cached_property
    def _found(self) -> WordIndex:
        return WordIndex(self.samples)

    def get(self) -> WordIndex:
        """Return the index, from any thread."""
        with self._lock:
            return self._found


class TextRenderer(UsualRenderer):
    """Renders the views of a split for one model.

    Args:
        samples: the split.
        spec: the views; None for un-augmented texts.
        seen: the model's preprocessing.
    """

    dtype = torch.int32
    checks_rendered = False

    def __init__(self, samples: Split, spec: TextViews | None, seen: Seen) -> None:
        self._samples, self._spec = samples, spec
        self._index = SharedIndex(samples)
        self._use(seen)

    def _use(self, seen: Seen) -> None:
        self._seen, self._encoder, self._lock = seen, None, Lock()
        self.shape = (seen.max_length,)

    _encoder: Encoder | None

    def for_model(self, seen: Seen) -> TextRenderer:
        """Return a renderer of the same views for a different model."""
        other = copy(self)
        other._use(seen)
        return other

    @property
    def seen(self) -> Seen:
        """The model's preprocessing."""
        return self._seen

    def words(self, view: int, rows: Rows) -> Words:
        """Return the words of rows (B,) of one view."""
        plain = self._index.get().words(rows)
        if self._spec is None:
            return plain
        return carry_out(self._spec, view, self._samples.keys[rows], plain)

    def render(self, view: int, rows: Rows) -> Tensor:
        """Return token ids (B, length) int32 of rows (B,) of one view."""
        if not len(rows):
            return torch.empty((0, *self.shape), dtype=self.dtype)
        return torch.from_numpy(self._get_encoder().encode(self.words(view, rows)))

    def evidence(self, view: int, rows: Rows) -> list[NDArray[np.uint8]]:
        """Return the UTF-8 bytes (n,) of the text of each row (B,); a mask is one byte, 0xFE."""
        return [packed(text) for text in self.words(view, rows).begun().texts()]

    def lengths(self, view: int, rows: Rows) -> NDArray[np.int64]:
        """Return the un-augmented length in bytes of rows (B,)."""
        # Bytes, not token ids: lengths only decide which samples share a batch, and every model of the same
        # views then has the same batches.
        lengths: NDArray[np.int64] = self._samples.shapes[rows, 0].astype(np.int64)
        return lengths

    def used(self, rendered: Tensor) -> tuple[int, ...]:
        """Return (B, longest), with the longest sample rounded up to a multiple of 8."""
        # (B, length) -> the last column in which any sample has an id: columns 0 to 12 are 13, so 16 stay.
        filled = (rendered != self._seen.tokenizer.pad).any(0).nonzero()
        longest = int(filled[-1]) + 1 if len(filled) else 1
        return len(rendered), min(-(-longest // _STEP) * _STEP, rendered.shape[1])

    def _get_encoder(self) -> Encoder:
        with self._lock:
            if self._encoder is None:
                seen = self._seen
                encoder = Encoder(seen.tokenizer, seen.max_length, keeps_end=seen.truncation == "left")
                encoder.by_piece = encoder.by_piece and self._agrees()
                self._encoder = encoder
            return self._encoder

    def _agrees(self) -> bool:
        """Try on some texts whether they may be tokenised piece by piece."""
        if self._seen.tokenizer.kind != "file":
            return True
        # The file says so (`by_piece`); whole texts of the data, tokenised both ways, confirm it.
        rows = spread(len(self._samples), _TRIED)
        texts = [
            part for text in self._index.get().words(rows).begun().texts() for part in text.split(BORDER)
        ]
        same = agrees(self._seen.tokenizer, texts)
        if not same:
            note("the tokenizer joins words, so whole texts are tokenised, which takes longer")
        return same
