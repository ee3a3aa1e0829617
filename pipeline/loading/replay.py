"""A `torch` dataset for custom training loops: (image, label, teacher logits) of one view."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.codecs import find_codec, trust_codec
from pipeline.core.arrays import Rows
from pipeline.core.errors import counted
from pipeline.loading.drift import require_no_drift
from pipeline.loading.feed import Feed
from pipeline.loading.labels import Labels
from pipeline.loading.targets import EncodedView
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.modalities.table import mixed_blocks, preprocessing_of, require_data_classes, views_of
from pipeline.store.opening import open_logits
from pipeline.store.soft_labels import SoftLabels

_MOMENT = 1e-3
Item = tuple[Tensor, int | Tensor, Tensor]
_LEFT_BEHIND = ("_store", "_feed", "_hard", "_labels")


class ReplayDataset(Dataset[Item]):
    """The training samples of one view as the teacher saw them, with the teacher's logits.

    Call `set_view(epoch % dataset.n_views)` before iterating a `DataLoader` for the next epoch. All workers
    see the change, including persistent ones. Logits are held in memory once, encoded. Image and logits
    always belong to the same view; items prefetched by workers keep the view of their time.

    Args:
        store: an open store, its path, or its address, e.g. s3://bucket/main.zarr.
        data: the prepared dataset of the store, or its folder. Pass the folder if workers do not fork: they
            open it again, but a dataset object would be copied to each worker.
        preprocessing: the student's preprocessing; None for the teacher's.
        allow_drift: for a path: continue even if samples render differently than for the teacher.

    Raises:
        MismatchError: samples are missing, have different content, or render differently here; or the data
            has other classes.

    Example:
        >>> from pipeline import ReplayDataset
        >>> dataset = ReplayDataset("data/logits/main.zarr", "data/prepared")
        >>> dataset.set_view(1)
        >>> image, label, teacher_logits = dataset[0]
        >>> image.shape, label, teacher_logits.shape
        (torch.Size([1, 12, 12]), 0, torch.Size([3]))
    """

    def __init__(
        self,
        store: SoftLabels | Path | str,
        data: PreparedData | Path | str,
        preprocessing: Preprocessing | None = None,
        *,
        allow_drift: bool = False,
    ) -> None:
        opened = store
        if isinstance(opened, Path | str):
            opened = open_logits(opened, allow_drift=allow_drift)
        self._store: SoftLabels | None = opened
        self._place, self._data, self._spec = opened.location.place, data, views_of(opened)
        self._preprocessing = preprocessing or preprocessing_of(opened)
        prepared = self._prepared()
        require_data_classes(opened, prepared.classes, prepared.task)
        images = prepared.train
        self._blocks = mixed_blocks(opened, images)
        self._n_classes, self.n_views = len(prepared.classes), opened.n_views
        codecs = dict.fromkeys(member.codec.name for member in opened.members)
        self._name = f"{opened.location} ({', '.join(codecs)})"
        self._look()
        require_no_drift(opened, self._feed)
        self._rows = torch.from_numpy(opened.rows_of(images))
        self._codecs = [
            (m.codec.name, m.n_classes, dict(m.codec.state), m.measures.is_absolute) for m in opened.members
        ]
        self._derivation = opened.derivation
        self._view = _SharedView()
        arrays = {name: _shared(values) for name, values in self._read(0).items()}
        self._labels = EncodedView(opened.codec, arrays)

    def set_view(self, view: int) -> None:
        """Change the view of all samples, 0 <= view < n_views."""
        encoded = self._read(view)
        with self._view.changing_to(view):
            for name, values in encoded.items():
                self._labels.arrays[name].copy_(values)

    def __repr__(self) -> str:
        view = f"view {self._view.now()[1]} of {self.n_views}"
        return f"<ReplayDataset {self._name}: {counted(len(self), 'sample')}, {view}>"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Item:
        """Return image (channels, S, S) float32, label and logits (C,) float32.

        The label is a class index, -1 for unlabelled, or for mixed views class shares (C,) float32; tags
        (C,) int8 or numbers (C,) float32 under their tasks.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Item]:
        """Return several items at once, for `DataLoader`; much faster than one by one."""
        wanted = np.asarray(rows)
        if len(wanted) and not -len(self) <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"samples {wanted.min()} to {wanted.max()} are out of range; there are {len(self)}"
            )
        wanted = wanted % len(self)
        while True:
            generation, view = self._view.now()
            images = self._feed.preprocessing.normalise(self._feed.pixels(view, wanted))
            labels, logits = self._label(view, wanted), self._labels.logits(torch.from_numpy(wanted))
            # The view changed meanwhile: retry, since image and logits may belong to different views.
            if self._view.now()[0] == generation:
                return list(zip(images, labels, logits, strict=True))

    def _label(self, view: int, rows: Rows) -> list[int] | Tensor:
        labels = self._hard.of(view, rows)
        return labels if self._hard.are_mixed or labels.ndim > 1 else labels.tolist()

    def _read(self, view: int) -> dict[str, Tensor]:
        if self._store is None:
            # This object was unpickled, e.g. in a spawned worker. Drift was checked by the original.
            self._store = open_logits(self._place, allow_drift=True)
        encoded = self._store.encoded_view(view)
        return {name: torch.from_numpy(a).index_select(0, self._rows) for name, a in encoded.items()}

    def _prepared(self) -> PreparedData:
        return self._data if isinstance(self._data, PreparedData) else PreparedData.open(Path(self._data))

    def _look(self) -> None:
        """Open the images and create the feed with the store's views."""
        images, device = self._prepared().train, torch.device("cpu")
        self._feed = Feed(images, self._spec, self._preprocessing, device=device, blocks=self._blocks)
        self._hard = Labels(self._feed, self._n_classes)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without store and feed; a worker shares the tensors and reopens the images."""
        kept = {name: value for name, value in self.__dict__.items() if name not in _LEFT_BEHIND}
        return {**kept, "arrays": dict(self._labels.arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state.pop("arrays")
        self.__dict__.update(state)
        self._store = None
        for name, *_ in self._codecs:
            trust_codec(name)  # the process that opened the store may run it, and so may its workers
        codecs = [
            find_codec(name, n_classes, kept, absolute=absolute)
            for name, n_classes, kept, absolute in self._codecs
        ]
        decoder = self._derivation.decoder(codecs) if self._derivation else codecs[0]
        self._labels = EncodedView(decoder, arrays)
        self._look()


class _SharedView:
    """The current view, in shared memory; the generation number is odd while labels change."""

    def __init__(self) -> None:
        self._numbers = _shared(torch.zeros(2, dtype=torch.int64))

    def now(self) -> tuple[int, int]:
        """Return generation and view; wait while labels change."""
        while (generation := int(self._numbers[0])) % 2:
            time.sleep(_MOMENT)
        return generation, int(self._numbers[1])

    @contextmanager
    def changing_to(self, view: int) -> Iterator[None]:
        """Block all readers while labels change."""
        self._numbers[0] += 1
        yield
        self._numbers[1] = view
        self._numbers[0] += 1


def _shared(values: Tensor) -> Tensor:
    """Move a tensor to memory shared with worker processes."""
    shared: Tensor = values.share_memory_()  # type: ignore[no-untyped-call]
    return shared
