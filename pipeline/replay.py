"""A plain dataset for other people's training loops: (image, label, teacher logits) of one view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.packed import PreparedData
from pipeline.feed import Feed
from pipeline.models.preprocessing import Preprocessing
from pipeline.store.reader import LogitStore


class ReplayDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """The training images as the teacher saw them in one view, with the teacher's logits.

    Call `set_view(epoch % dataset.n_views)` before each epoch; with persistent workers, make the
    `DataLoader` anew instead, since workers hold a copy.

    Args:
        store: an open store, or its path.
        data: the prepared dataset it was made from, or its folder.
        preprocessing: how the student wants its images; None for the teacher's way.
    """

    def __init__(
        self,
        store: LogitStore | Path | str,
        data: PreparedData | Path | str,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self._store = store if isinstance(store, LogitStore) else LogitStore.open(store)
        prepared = data if isinstance(data, PreparedData) else PreparedData.open(Path(data))
        self._images = prepared.train
        self._rows = torch.from_numpy(self._store.rows_of(self._images))
        eyes = preprocessing or Preprocessing.from_dict(
            self._store.manifest.header.teacher["preprocessing"]
        )
        self._feed = Feed(
            self._images,
            self._store.view_spec,
            eyes,
            device=torch.device("cpu"),
            blocks=self._store.blocks_of(self._images),
        )
        self.n_views = self._store.n_views
        self.set_view(0)

    def set_view(self, view: int) -> None:
        """Show another view of every image, 0 <= view < n_views."""
        self._view, self._logits = view, self._store.view(view)[self._rows]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, int, Tensor]:
        """Return image (channels, S, S) float32, label (-1: unlabelled) and logits (C,) float32."""
        pixels = self._feed.pixels(self._view, np.array([row]))
        image = self._feed.preprocessing.normalise(pixels)[0]
        return image, int(self._images.labels[row]), self._logits[row]
