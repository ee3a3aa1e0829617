"""One run on a prepared dataset: fit a network to its training split, choose the epoch on validation.

Joins feeds, loader and loop; the same for a teacher, a student and a baseline.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.bench import EVALUATION_BATCH, Bench
from pipeline.data.dataset import PreparedData
from pipeline.errors import DataError
from pipeline.loader import Loader
from pipeline.losses import LossFunction
from pipeline.metrics import Metrics, evaluate
from pipeline.models.architecture import (
    Architecture,
    build,
    default_stem_stride,
    replace_head,
)
from pipeline.models.checkpoint import ModelCard
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.weights import load_pretrained
from pipeline.progress import note
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore
from pipeline.targets import Targets
from pipeline.training.distributed import synchronise_norms
from pipeline.training.history import TrainingResult
from pipeline.training.loop import fit
from pipeline.training.settings import TrainingSettings
from pipeline.views.spec import ViewSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run begins with.

    Args:
        model: name of the architecture.
        weights: pretrained weights by name or path; None for fresh ones.
        image_size: input side in pixels; None takes the weights', or else the images' own.
        channels: 1 or 3 that the network sees; None takes the images' own.
        stem_stride: 1, 2 or 4; None suits it to the image size.
        options: keyword arguments of the architecture's builder.
    """

    model: str
    weights: str | None
    image_size: int | None
    channels: int | None
    stem_stride: int | None
    options: dict[str, Any]


def initial_network(data: PreparedData, start: Start, seed: int) -> tuple[nn.Module, ModelCard]:
    """Return a network that fits a dataset, and its card.

    Fresh weights are drawn from the seed. Pretrained weights of another number of classes get a fresh
    last layer.

    Raises:
        ModelError: unknown model or weights, or a network that cannot be fitted.
        DataError: the images differ in size and no `image_size` says what the network shall see.
    """
    torch.manual_seed(seed)
    if start.weights is None:
        card = _new_card(data, start)
        return build(card.architecture), card
    network, card = load_pretrained(start.model, start.weights)
    if start.image_size is not None:
        card = replace(card, preprocessing=replace(card.preprocessing, size=start.image_size))
    if len(card.classes) != len(data.classes):
        replace_head(network, len(data.classes))
        architecture = replace(card.architecture, num_classes=len(data.classes))
        card = replace(card, architecture=architecture)
    return network, replace(card, classes=data.classes)


def _new_card(data: PreparedData, start: Start) -> ModelCard:
    size, channels = start.image_size or _own_size(data), start.channels or data.channels
    return ModelCard(
        architecture=Architecture(
            name=start.model,
            num_classes=len(data.classes),
            channels=channels,
            stem_stride=start.stem_stride or default_stem_stride(start.model, size),
            options=start.options,
        ),
        preprocessing=Preprocessing(
            size=size, mean=_as_channels(data.mean, channels), std=_as_channels(data.std, channels)
        ),
        classes=data.classes,
    )


def _as_channels(moments: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return moments of the images as those of what a network of one or three channels sees of them."""
    if len(moments) == channels:
        return moments
    return (statistics.mean(moments),) * channels


def _own_size(data: PreparedData) -> int:
    shapes = data.train.shapes
    if (shapes != shapes[0, 0]).any():
        low, high = shapes.min(0).tolist(), shapes.max(0).tolist()
        raise DataError(
            f"the images are {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels and data.image_size is not "
            "set; expected the side of the models' square input; set it, for example to 64"
        )
    return int(shapes[0, 0])


def train(
    bench: Bench,
    network: nn.Module,
    card: ModelCard,
    *,
    views: ViewSpec,
    store: LogitStore | Ensemble | None,
    loss: LossFunction,
    settings: TrainingSettings,
    seed: int,
    state_path: Path,
    identity: dict[str, Any],
) -> TrainingResult:
    """Fit a network to the training split.

    Args:
        bench: the data and the device.
        network: moved to the device and trained.
        card: of the network.
        views: what it is shown; those of the store where there is one.
        store: with the teacher's logits of these views, or several teachers'; or None.
        loss: of (logits, labels, teacher logits).
        settings: of the optimisation.
        seed: of the order and of dropout.
        state_path: where the state of an unfinished run is kept.
        identity: what else makes this run this run.

    Raises:
        MismatchError: the store is of other images, or they look otherwise here.
        TrainingError: the loss is not finite.
    """
    data, eyes = bench.data, card.preprocessing
    network.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    synchronise_norms(network, bench.ranks, bench.device)
    feed = bench.feed(data.train, views, eyes, None if store is None else store.blocks_of(data.train))
    targets = None if store is None else Targets(store, feed)
    note(f"training on {feed.path}")
    loader = Loader(
        feed,
        targets,
        batch_size=settings.batch_size,
        seed=seed,
        n_classes=len(data.classes),
        parts=settings.accumulate,
        ranks=bench.ranks,
    )
    held_out = bench.feed(data.validation, None, eyes)

    def validate(trained: nn.Module) -> Metrics:
        return evaluate(trained, held_out, batch_size=EVALUATION_BATCH, ranks=bench.ranks)

    return fit(
        network,
        loader,
        loss,
        settings,
        device=bench.device,
        seed=seed,
        evaluate=validate if len(data.validation) else None,
        state_path=state_path,
        ranks=bench.ranks,
        identity={
            **identity,
            "card": card.to_dict(),
            "views": views.canonical(),
            "settings": settings.to_dict(),
            "seed": seed,
            "data": data.train.digest(),
        },
    )
