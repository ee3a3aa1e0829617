"""Cached logits to a loss: the one way a store's labels reach training.

One view is read whole and copied, ahead of its epoch and beside training, and kept encoded on the device; a
batch is a gather and a decode. Rows are found by sample key, never by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.codecs.base import Codec, Decoder, FeatureDecoder
from pipeline.core.device import Courier
from pipeline.core.errors import ConfigError
from pipeline.loading.drift import require_same_pixels
from pipeline.loading.feed import Feed
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore


@dataclass(frozen=True, slots=True)
class EncodedView:
    """One view's labels of a split's N samples, in the split's order.

    Args:
        codec: the store's.
        arrays: its arrays of N rows, on the device.
    """

    codec: Decoder
    arrays: Mapping[str, Tensor]

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the encoded rows (B,) int64 of a batch."""
        # Copies whole rows: eight times as fast as indexing, which copies elements.
        return {name: array.index_select(0, rows) for name, array in self.arrays.items()}

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits (B, C) float32 of a batch's rows (B,) int64."""
        return self.codec.decode(self.gather(rows))

    def features(self, rows: Tensor) -> Tensor:
        """Return the teacher's features (B, D) float32 of a batch's rows (B,) int64."""
        return require_features(self.codec).decode(self.gather(rows))


class Targets:
    """The teacher's logits of a split's samples, a view at a time.

    Args:
        store: an open store, or an ensemble of some.
        feed: the images that train, with the store's views; logits are decoded on its device.

    Raises:
        MismatchError: the store lacks a sample, or images do not look as the teacher saw them.

    """

    def __init__(self, store: LogitStore | Ensemble, feed: Feed) -> None:
        require_same_pixels(store, feed)
        self._store, self._courier = store, Courier(feed.device)
        self._rows = torch.from_numpy(store.rows_of(feed.images))
        self.n_views = store.n_views
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="view-reader")
        self._pending: dict[int, Future[EncodedView]] = {}
        self._current: tuple[int, EncodedView] | None = None

    def require_features(self) -> int:
        """Return how many features a sample has.

        Raises:
            ConfigError: the store keeps none.
        """
        return require_features(self._store.codec).dim

    def load(self, view: int) -> EncodedView:
        """Return one view's labels, in the order of the split."""
        if self._current is None or self._current[0] != view:
            self.prefetch(view)
            self._current = view, self._pending.pop(view).result()
        return self._current[1]

    def prefetch(self, view: int) -> None:
        """Begin to read a view in the background."""
        held = self._current is not None and self._current[0] == view
        if not held and view not in self._pending:
            self._pending[view] = self._pool.submit(self._read, view)

    def _read(self, view: int) -> EncodedView:
        encoded = self._store.encoded_view(view)
        arrays = {name: torch.from_numpy(a).index_select(0, self._rows) for name, a in encoded.items()}
        return EncodedView(self._store.codec, self._courier.bring(arrays))


def require_features(codec: Decoder) -> FeatureDecoder:
    """Return what reads the teacher's features.

    Raises:
        ConfigError: the codec keeps none.
    """
    if codec.features is None:
        kept = f"codec {codec.name}" if isinstance(codec, Codec) else "several teachers"
        raise ConfigError(
            f"the loss compares features, and the dump is of {kept}; expected codec features, which keeps "
            "them; dump once more with it, or choose a loss of logits"
        )
    return codec.features
