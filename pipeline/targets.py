"""Cached logits to a loss: the one way a store's labels reach training.

One view is read whole, ahead of its epoch, and kept encoded on the device; a batch is a gather and a
decode. Rows are found by sample key, never by position.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.store.reader import LogitStore

Logits = Callable[[Tensor], Tensor]


class Targets:
    """The teacher's logits of a split's samples, a view at a time.

    Args:
        store: an open store.
        images: the split that trains; each of its samples must be in the store, with this content.
        device: where logits are decoded.

    Raises:
        MismatchError: the store lacks a sample or was made from other content.

    """

    def __init__(self, store: LogitStore, images: PackedImages, device: torch.device) -> None:
        self._store, self._device = store, device
        self._rows = store.rows_of(images)
        self.n_views = store.n_views
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="view-reader")
        self._pending: dict[int, Future[Logits]] = {}
        self._current: tuple[int, Logits] | None = None

    def load(self, view: int) -> Logits:
        """Return the function from rows (B,) of the split to logits (B, C) of one view."""
        if self._current is None or self._current[0] != view:
            self.prefetch(view)
            self._current = view, self._pending.pop(view).result()
        return self._current[1]

    def prefetch(self, view: int) -> None:
        """Begin to read a view in the background."""
        held = self._current is not None and self._current[0] == view
        if not held and view not in self._pending:
            self._pending[view] = self._pool.submit(self._read, view)

    def _read(self, view: int) -> Logits:
        encoded = {
            name: torch.from_numpy(array[self._rows]).to(self._device)
            for name, array in self._store.encoded_view(view).items()
        }
        codec = self._store.codec
        return lambda rows: codec.decode({name: array[rows] for name, array in encoded.items()})
