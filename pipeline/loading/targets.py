"""Deliver cached logits and features to a loss.

A whole view is read and copied in the background before its epoch, and stays encoded on the device. A batch
is a gather and a decode. Rows are found by sample key, never by position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.codecs.base import Codec, Decoder, FeatureDecoder
from pipeline.core.arrays import Rows
from pipeline.core.device import Courier, to_device
from pipeline.core.errors import ConfigError
from pipeline.loading.drift import require_no_drift
from pipeline.loading.feed import Feed, consecutive
from pipeline.loading.labels import Labels, class_shares
from pipeline.losses import FeatureNeeds, Features
from pipeline.store.follow import FollowedStore
from pipeline.store.soft_labels import SoftLabels

_ROWS_AT_ONCE = 4096
# A view, and the lap of its part; None for the whole view.
_Asked = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class EncodedView:
    """One view's encoded teacher outputs for a split's N samples, in the split's order.

    Args:
        codec: the store's codec.
        arrays: the codec's arrays of N rows, on the device.
    """

    codec: Decoder
    arrays: Mapping[str, Tensor]

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the encoded arrays of a batch's rows (B,) int64."""
        # index_select copies whole rows; indexing copies single elements and is eight times slower.
        return {name: array.index_select(0, rows) for name, array in self.arrays.items()}

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits (B, C) float32 of a batch's rows (B,) int64, or codewords (B, M) int64."""
        return self.codec.decode(self.gather(rows))

    def features(self, rows: Tensor) -> Tensor:
        """Return the teacher's features (B, D) float32 of a batch's rows (B,) int64."""
        return require_features(self.codec).decode(self.gather(rows))


@dataclass(frozen=True, slots=True)
class _Codewords:
    """A decoder that returns the numbers of codewords (B, M) int64 in place of outputs."""

    features: FeatureDecoder | None = None

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["codes"].long()


@dataclass(frozen=True, slots=True)
class Part:
    """The rows whose outputs one process reads, if several processes share the samples.

    Args:
        lap: number of the pass over the split, which decides the rows.
        rows: returns the rows (n,) of the split; called on the reading thread, where it may wait.
    """

    lap: int
    rows: Callable[[], Rows]


class Targets:
    """The teacher's logits of a split's samples, one view at a time.

    Args:
        store: an open store or ensemble; a view of a `FollowedStore` is waited for when it is loaded.
        feed: the training images, with the store's views; logits are decoded on its device.
        seed: of the choice of samples whose checksums are compared, if there are many.
        codes: whether `logits` of a view returns the numbers of codewords (B, M) int64, for loss `codes`.

    Raises:
        MismatchError: the store lacks a sample, or images render differently than for the teacher.
        ConfigError: codewords are asked for, and the store's codec has none.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from pipeline import Feed, LogitStore, PreparedData, Targets
        >>> from pipeline.modalities.table import preprocessing_of, views_of
        >>> store = LogitStore.open("data/logits/main.zarr")
        >>> images, device = PreparedData.open(Path("data/prepared")).train, torch.device("cpu")
        >>> feed = Feed(images, views_of(store), preprocessing_of(store), device=device)
        >>> targets = Targets(store, feed)
        >>> targets.load(view=0).logits(torch.arange(4)).shape
        torch.Size([4, 3])
    """

    def __init__(self, store: SoftLabels, feed: Feed, seed: int = 0, *, codes: bool = False) -> None:
        self._store, self._courier = store, Courier(feed.device)
        self._codec: Decoder = store.codec
        # C, or M L for codewords: the width of the student's outputs, or of their projection.
        self.width = store.n_classes
        if codes:
            self._codec, self.width = _Codewords(), math.prod(require_codebooks(store.codec))
        self._feed, self._seed = feed, seed
        self._followed = [member for member in store.members if isinstance(member, FollowedStore)]
        # Views of an unfinished store are compared one by one, when they are whole.
        self._compared: set[int] = set()
        if not self._followed:
            require_no_drift(store, feed, seed)
        self._rows = torch.from_numpy(store.rows_of(feed.images))
        self.n_views = store.n_views
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="view-reader")
        self._pending: dict[_Asked, Future[EncodedView]] = {}
        self._current: tuple[_Asked, EncodedView] | None = None

    def require_features(self) -> int:
        """Return the number of features per sample (Dt).

        Raises:
            ConfigError: the store has no features.
        """
        return require_features(self._store.codec).dim

    def blocks(self) -> Rows:
        """Return the block of the store (N,) that holds each sample: rows that are read together."""
        layout = self._store.members[0].manifest.layout
        blocks: Rows = layout.sections["train"].rows()[self._rows.numpy()] // layout.shard_rows
        return blocks

    def load(self, view: int, part: Part | None = None) -> EncodedView:
        """Return one view's encoded outputs; wait if they are still loading.

        Args:
            view: the view.
            part: rows of the split, whose outputs are returned in their order; None for all N samples.
        """
        asked = _asked(view, part)
        if self._current is None or self._current[0] != asked:
            self._wait_for(view)
            self.prefetch(view, part)
            self._current = asked, self._pending.pop(asked).result()
        return self._current[1]

    def _wait_for(self, view: int) -> None:
        """Wait for a view of an unfinished store, and compare its samples with those rendered here."""
        for store in self._followed:
            store.wait_for_view(view)
        if self._followed and view not in self._compared:
            require_no_drift(self._store, self._feed, self._seed, view)
            self._compared.add(view)

    def prefetch(self, view: int, part: Part | None = None) -> None:
        """Start to read a view, or a part of it, in the background, unless it is not written yet."""
        if not all(store.has_view(view) for store in self._followed):
            return
        # Cost: two encoded views at a time, the current one and the next.
        asked = _asked(view, part)
        held = self._current is not None and self._current[0] == asked
        if not held and asked not in self._pending:
            self._pending[asked] = self._pool.submit(self._read, view, part)

    def _read(self, view: int, part: Part | None) -> EncodedView:
        # Store order (rows of the store, ...) -> split order (N, ...), once per view and on the host. Each
        # batch is then one gather on the device, and samples that the split lacks are never copied.
        if part is None:
            encoded = self._store.encoded_view(view)
            arrays = {name: torch.from_numpy(a).index_select(0, self._rows) for name, a in encoded.items()}
        else:
            encoded = self._store.encoded_view(view, self._rows.numpy()[part.rows()])
            arrays = {name: torch.from_numpy(values) for name, values in encoded.items()}
        return EncodedView(self._codec, self._courier.bring(arrays))


def _asked(view: int, part: Part | None) -> _Asked:
    return view, None if part is None else part.lap


def require_codebooks(codec: Decoder) -> tuple[int, int]:
    """Return the number of codebooks, and of codewords in each.

    Raises:
        ConfigError: the codec has none.
    """
    if not isinstance(codec, Codec) or codec.codebooks is None:
        raise ConfigError(
            "the loss learns codewords, but the store has none; re-dump with codec pq-M or rvq-M, or "
            "choose another loss, e.g. cosine"
        )
    return codec.codebooks


def require_features(codec: Decoder) -> FeatureDecoder:
    """Return the decoder of the teacher's features.

    Raises:
        ConfigError: the codec stores no features.
    """
    if codec.features is None:
        found = (
            f"was written with codec {codec.name!r}, which keeps logits only"
            if isinstance(codec, Codec)
            else "averages several teachers"
        )
        raise ConfigError(
            f"the loss needs teacher features, but the store {found}; re-dump with codec: features, or "
            "choose a logit loss"
        )
    return codec.features


@dataclass(frozen=True, slots=True)
class TeacherFeatures:
    """The teacher's features of a batch, with negatives and class centres.

    Args:
        own: (B, Dt) float32 features of the batch's views.
        negatives: (K, Dt) features of other samples in the same view, or None.
        negative_labels: (K,) int64 labels of the negatives, or -1; None for mixed views.
        centres: (C, Dt) mean features of the classes, or None.
    """

    own: Tensor
    negatives: Tensor | None = None
    negative_labels: Tensor | None = None
    centres: Tensor | None = None

    def beside(self, student: Tensor) -> Features:
        """Combine with the student's features (B, Ds) of the same views."""
        return Features(student, self.own, self.negatives, self.negative_labels, self.centres)


class FeatureSource:
    """The teacher's features of a split, one epoch at a time, for feature losses.

    The codec `features` stores them quantised, and logits are decoded from the same bytes. The features of
    a step are a pure function of (seed, epoch, samples), like the step itself.

    Args:
        targets: targets of the split.
        labels: labels of the same images.
        n_classes: C, required for centres.
        needs: the loss's needs: number of negatives, centres.

    Raises:
        ConfigError: the store has no features, or `n_classes` is missing.
    """

    def __init__(
        self, targets: Targets, labels: Labels, n_classes: int | None, needs: FeatureNeeds
    ) -> None:
        self.dim = targets.require_features()
        if needs.centres and n_classes is None:
            raise ConfigError(
                "the loss needs class centres, but n_classes is None; pass the number of classes"
            )
        self._targets, self._labels, self._needs = targets, labels, needs
        self._n_classes = n_classes or 0
        self._centres: Tensor | None = None

    def epoch(self, view: int, order: Tensor) -> EpochFeatures:
        """Return the features of an epoch.

        Args:
            view: the epoch's view.
            order: (M,) int64 rows in the epoch's order, on the device.
        """
        # Always from view 0, so that a resumed run gets the same centres. That run loads view 0 too.
        if self._needs.centres and self._centres is None:
            self._centres = self._class_means(self._targets.load(0))
        labels = None if self._labels.are_mixed else self._labels.own
        return EpochFeatures(
            self._targets.load(view), order, labels, self._centres, negatives=self._needs.negatives
        )

    def _class_means(self, encoded: EncodedView) -> Tensor:
        """Return each class's mean features (C, Dt) in view 0; zeros for a class without labels."""
        device = self._labels.own.device
        # Per chunk of b rows: (C, b) @ (b, Dt). Shares weigh mixed samples; -1 has zero weight.
        # Chunks bound memory: all N float32 features at once would be several times the encoded view.
        sums = torch.zeros(self._n_classes, self.dim, device=device)
        counts = torch.zeros(self._n_classes, 1, device=device)
        for rows in consecutive(len(self._labels.own), _ROWS_AT_ONCE):
            on_device = to_device(rows, device)
            shares = self._labels.of(0, rows, on_device)
            if not shares.is_floating_point():
                shares = class_shares(shares, self._n_classes)
            sums += shares.T @ encoded.features(on_device)
            counts += shares.sum(0)[:, None]
        # Division by 1, not 0, for a class without labels.
        return sums / torch.where(counts > 0, counts, 1)


class EpochFeatures:
    """The teacher's features of an epoch's batches.

    A batch's negatives are the next samples of the epoch, and at the end its first ones. They are as random
    as the order, never overlap the batch, and do not depend on the step at which a run resumes.

    Args:
        encoded: the epoch's view.
        order: (M,) int64 rows in the epoch's order, on the device.
        labels: (N,) int64 labels of all rows; None for mixed views.
        centres: (C, Dt) mean features of the classes, or None.
        negatives: number of negatives; fewer in an epoch with too few samples.
    """

    def __init__(
        self,
        encoded: EncodedView,
        order: Tensor,
        labels: Tensor | None,
        centres: Tensor | None,
        *,
        negatives: int,
    ) -> None:
        self._encoded, self._labels, self._centres = encoded, labels, centres
        self._count, self._negatives = len(order), negatives
        # The first rows are appended, so that a slice may run past the end. Example: M = 8, B = 2, K = 3:
        #   order 0 1 2 3 4 5 6 7 | 0 1 2;  batch [6, 7], first = 6: negatives at 8:11, i.e. 0 1 2
        # K is at most M - B, so that the slice never reaches the batch itself.
        self._order = torch.cat([order, order[:negatives]])

    def of(self, rows: Tensor, first: int) -> TeacherFeatures:
        """Return a batch's features.

        Args:
            rows: (B,) int64, on the device.
            first: position of the batch in the epoch's order.
        """
        own = self._encoded.features(rows)
        count = min(self._negatives, self._count - len(rows))
        if not count:
            return TeacherFeatures(own, centres=self._centres)
        following = first + len(rows)
        others = self._order[following : following + count]
        labels = None if self._labels is None else self._labels[others]
        return TeacherFeatures(own, self._encoded.features(others), labels, self._centres)
