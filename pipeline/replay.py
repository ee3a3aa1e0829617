"""A plain dataset for other people's training loops: (image, label, teacher logits) of one view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.codecs import find_codec
from pipeline.data.packed import PreparedData
from pipeline.drift import require_same_pixels
from pipeline.feed import Feed
from pipeline.labels import mixed_labels
from pipeline.models.preprocessing import Preprocessing
from pipeline.store.reader import LogitStore
from pipeline.targets import EncodedView

_LEFT_BEHIND = ("_store", "_feed", "_labels")


class ReplayDataset(Dataset[tuple[Tensor, int | Tensor, Tensor]]):
    """The training images as the teacher saw them in one view, with the teacher's logits.

    Call `set_view(epoch % dataset.n_views)` before each epoch, between two iterations of a `DataLoader`.
    Its workers see the change, persistent ones too; a view's logits are in memory once, encoded.

    Args:
        store: an open store, or its path.
        data: the prepared dataset it was made from, or its folder. Workers that do not fork open the folder
            again, and would be sent a copy of the whole dataset.
        preprocessing: how the student wants its images; None for the teacher's way.
        allow_drift: of the store's path: go on with images that look otherwise than the teacher saw them.

    Raises:
        MismatchError: images are missing, have other content, or are rendered otherwise here.
    """

    def __init__(
        self,
        store: LogitStore | Path | str,
        data: PreparedData | Path | str,
        preprocessing: Preprocessing | None = None,
        *,
        allow_drift: bool = False,
    ) -> None:
        opened = store if isinstance(store, LogitStore) else LogitStore.open(store, allow_drift=allow_drift)
        self._store, self._data, self._spec = opened, data, opened.view_spec
        teachers = Preprocessing.from_dict(opened.manifest.header.teacher["preprocessing"])
        self._eyes = preprocessing or teachers
        images = self._prepared().train
        self._rows, self._blocks = torch.from_numpy(opened.rows_of(images)), opened.blocks_of(images)
        self._feed = self._make_feed()
        require_same_pixels(opened, self._feed)
        self._n_classes, self.n_views = opened.manifest.layout.n_classes, opened.n_views
        self._view = _shared(torch.zeros((), dtype=torch.int64))
        arrays = {name: _shared(values) for name, values in self._read(0).items()}
        self._labels = EncodedView(opened.codec, arrays)

    def set_view(self, view: int) -> None:
        """Show another view of every image, 0 <= view < n_views."""
        for name, values in self._read(view).items():
            self._labels.arrays[name].copy_(values)
        self._view.fill_(view)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[Tensor, int | Tensor, Tensor]:
        """Return image (channels, S, S) float32, label and logits (C,) float32.

        The label is a class index, -1 for unlabelled; where views mix, the classes' shares (C,) float32.
        """
        view, rows = int(self._view), np.array([row])
        image = self._feed.preprocessing.normalise(self._feed.pixels(view, rows))[0]
        return image, self._label(view, rows), self._labels.logits(torch.from_numpy(rows))[0]

    def _label(self, view: int, rows: np.ndarray[Any, Any]) -> int | Tensor:
        labels, mixture = self._feed.images.labels, self._feed.shares(view, rows)
        if mixture is None:
            return int(labels[rows[0]])
        partners, shares = mixture
        own, theirs = (torch.from_numpy(labels[some]) for some in (rows, partners))
        return mixed_labels(own, theirs, torch.from_numpy(shares).float(), self._n_classes)[0]

    def _read(self, view: int) -> dict[str, Tensor]:
        encoded = self._store.encoded_view(view)
        return {name: torch.from_numpy(a).index_select(0, self._rows) for name, a in encoded.items()}

    def _prepared(self) -> PreparedData:
        return self._data if isinstance(self._data, PreparedData) else PreparedData.open(Path(self._data))

    def _make_feed(self) -> Feed:
        device = torch.device("cpu")
        return Feed(self._prepared().train, self._spec, self._eyes, device=device, blocks=self._blocks)

    def __getstate__(self) -> dict[str, Any]:
        """Leave store and feed behind: a worker has the shared tensors, and opens the images."""
        kept = {name: value for name, value in self.__dict__.items() if name not in _LEFT_BEHIND}
        codec = self._labels.codec
        form = codec.name, self._n_classes, dict(codec.state)
        return {**kept, "codec": form, "arrays": dict(self._labels.arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        form, arrays = state.pop("codec"), state.pop("arrays")
        self.__dict__.update(state)
        self._labels = EncodedView(find_codec(*form), arrays)
        self._feed = self._make_feed()


def _shared(values: Tensor) -> Tensor:
    """Move a tensor to memory that worker processes see."""
    shared: Tensor = values.share_memory_()  # type: ignore[no-untyped-call]
    return shared
