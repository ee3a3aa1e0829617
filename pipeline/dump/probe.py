"""Linear probe: a last layer fitted to labels on cached features, without the teacher.

It lowers the task's loss of labels alone, e.g. cross-entropy, plus penalty / 2 |W|^2 for features of mean 0
and deviation 1, by L-BFGS in float64. Rows, their order and the start are fixed, so the same dump and
labels give the same probe on one machine. Of several penalties, the one with the lowest loss on the
un-augmented validation samples wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import FeatureDecoder
from pipeline.codecs.head import Head
from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.progress import note
from pipeline.evaluation.context import RunContext
from pipeline.loading.labels import Labels
from pipeline.losses import ScheduledLoss, make_loss
from pipeline.modalities.table import mixed_blocks, preprocessing_of, views_of
from pipeline.samples.label_forms import is_known
from pipeline.store.reader import LogitStore
from pipeline.store.rehead import is_embedding, reading_through, require_features

PENALTIES = (1e-2, 1e-3, 1e-4)
# Rows to fit to: 4 bytes each per feature, 512 MB for 1,280 features.
_MOST_ROWS = 100_000
_ROWS_AT_ONCE = 8192
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesson:
    """Cached features of labelled samples, standardised, with their labels.

    Args:
        features: (n, D) float32, of mean 0 and deviation 1.
        labels: (n, ...) of the task's kind; shares where views mix.
        mean, deviation: (D,) float64, before.
        loss: of labels alone.
    """

    features: Tensor
    labels: Tensor
    mean: Tensor
    deviation: Tensor
    loss: ScheduledLoss

    def mean_loss(self, weight_CD: Tensor, bias_C: Tensor) -> Tensor:
        """Return the mean loss, with a gradient in chunks of rows."""
        total = torch.zeros((), dtype=torch.float64, device=weight_CD.device)
        for start in range(0, len(self.features), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            outputs = F.linear(self.features[some].double(), weight_CD, bias_C)
            labels = self.labels[some]
            part = self.loss(outputs, labels) * len(labels) / len(self.features)
            if part.requires_grad:
                part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        return total

    def head(self, weight_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias for features that are not standardised."""
        weight = weight_CD / self.deviation
        return weight.float(), (bias_C - weight @ self.mean).float()


def fit_probe(
    name: str,
    store: LogitStore,
    context: RunContext,
    labels_N: NDArray[np.generic],
    penalty: float | None = None,
) -> Head:
    """Fit a probe to a store's features.

    Args:
        name: of the store, for errors.
        store: keeps features.
        context: the data, its task and the device.
        labels_N: of the training samples, as students may see them.
        penalty: of squared weights; None for the best of `PENALTIES`.

    Raises:
        ConfigError: the store keeps no features, or the task has no loss of labels.
        DataError: no sample is labelled.
    """
    if context.task.supervised is None:
        raise ConfigError(
            f"a probe learns from labels, and task {context.task.name} has no loss of labels; expected "
            "classes, multilabel or scores; set data.task"
        )
    lesson = _lesson(require_features(name, store), store, context, labels_N)
    weight = lesson.features.new_zeros(len(context.data.classes), len(lesson.mean), dtype=torch.float64)
    state = weight, weight.new_zeros(len(weight))
    judged: list[tuple[float, float, Head]] = []
    judge = _judge(store, context, lesson.loss)
    for value in PENALTIES if penalty is None and judge is not None else (penalty or PENALTIES[1],):
        state = _lowest(lesson, *state, value)
        weight, bias = (part.cpu() for part in lesson.head(*state))
        head = Head(
            weight=weight,
            bias=bias,
            classes=context.data.classes,
            of_outputs=is_embedding(store),
            link=context.task.measures.link,
        )
        judged.append((0.0 if judge is None else judge(head), value, head))
    loss, chosen, head = min(judged, key=lambda one: one[0])
    told = "" if judge is None else f", validation loss {loss:.4f}"
    note(f"probe of {name}: {len(lesson.features):,} labelled rows, penalty {chosen:g}{told}")
    return head


def _lowest(lesson: _Lesson, weight_CD: Tensor, bias_C: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias with the lowest loss, from a start."""
    parts = [part.clone().requires_grad_() for part in (weight_CD, bias_C)]
    search = torch.optim.LBFGS(parts, max_iter=_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> float:
        search.zero_grad()
        cost = penalty / 2 * parts[0].square().sum()
        cost.backward()  # type: ignore[no-untyped-call]
        return float(cost.detach() + lesson.mean_loss(*parts))

    search.step(loss)  # type: ignore[no-untyped-call]
    weight, bias = (part.detach() for part in parts)
    return weight, bias


def _lesson(
    decoder: FeatureDecoder, store: LogitStore, context: RunContext, labels_N: NDArray[np.generic]
) -> _Lesson:
    """Return features of the first views of labelled samples, at most `_MOST_ROWS` rows."""
    images = context.data.train
    known = np.flatnonzero(is_known(labels_N))
    if not len(known):
        raise DataError(
            "a probe needs labelled training samples, and there are none; label some, or raise "
            "data.labels_per_class"
        )
    rows = known[spread(len(known), _MOST_ROWS)]
    feed = context.feed(images, views_of(store), preprocessing_of(store), mixed_blocks(store, images))
    labels = Labels(feed, len(context.data.classes), labels_N)
    places = torch.from_numpy(store.rows_of(images)[rows])
    features, answers = [], []
    for view in range(min(store.n_views, max(1, _MOST_ROWS // len(rows)))):
        arrays = {
            n: torch.from_numpy(a).index_select(0, places) for n, a in store.encoded_view(view).items()
        }
        features.append(decoder.decode(arrays))
        answers.append(labels.of(view, rows))
    every = torch.cat(features).to(context.device)
    mean, deviation = every.double().mean(0), every.double().std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return _Lesson(
        features=((every - mean) / deviation).float(),
        labels=torch.cat(answers).to(context.device),
        mean=mean,
        deviation=deviation,
        loss=make_loss(str(context.task.supervised), {}),
    )


def _judge(store: LogitStore, context: RunContext, loss: ScheduledLoss) -> Callable[[Head], float] | None:
    """Return a function from a head to its loss on the labelled validation samples; None without them."""
    images = context.data.validation
    known = np.flatnonzero(is_known(images.labels)) if len(images) else np.zeros(0, np.int64)
    if not len(known) or "validation" not in store.sections:
        return None
    rows = store.sections["validation"].rows_of(images)[known]
    labels = torch.from_numpy(images.labels[known])

    def judge(head: Head) -> float:
        outputs = reading_through(store, "validation", head.decoder([store.codec])).logits(0, rows)
        return float(loss(outputs.double(), labels))

    return judge
