"""A complete run on a prepared dataset: train on the training split, select the epoch on validation.

Joins feeds, loader and loop, for teachers, students and baselines alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pipeline.core.distributed import synchronise_norms
from pipeline.core.progress import note
from pipeline.evaluation.context import EVALUATION_BATCH, RunContext, evaluate
from pipeline.loading.loader import Division, Loader
from pipeline.loading.targets import Targets
from pipeline.loading.training_set import TrainingSet
from pipeline.modalities.preprocessing import Views
from pipeline.modalities.table import mixed_blocks, require_data_classes
from pipeline.models.checkpoint import ModelCard, state_digest
from pipeline.samples.packed import Split
from pipeline.store.checked import read_checked
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit, make_output_projection, make_projection
from pipeline.training.state import TrainingResult


def train(
    context: RunContext,
    network: nn.Module,
    card: ModelCard,
    spec: RunSpec,
    *,
    views: Views,
    store: SoftLabels | None,
    training_set: TrainingSet | None = None,
) -> TrainingResult:
    """Fit a network to the training split.

    Args:
        context: run context with data and device.
        network: network to train; it is moved to the device.
        card: the network's card.
        spec: specification of the run; weights, card, views and training set are added to its identity.
        views: training views; with a store, the store's views.
        store: store or ensemble with teacher logits of these views, or None.
        training_set: the samples to train on; None for the whole training split with a store, else for its
            labelled samples once per epoch.

    Raises:
        DataError: there is neither a store nor a label.
        MismatchError: the store has different samples or classes, or samples render differently here.
        CorruptStoreError: the store's test logits, needed for agreement afterwards, are damaged.
        ConfigError: the loss compares features, and the store has none.
        TrainingError: the loss, weights or logits are not finite, or every step was skipped.
    """
    data, preprocessing, begins_with = context.data, card.preprocessing, state_digest(network)
    loss, settings = spec.loss.over(spec.settings.epochs), spec.settings
    if training_set is None:
        training_set = (
            TrainingSet.of_labelled(data.train) if store is None else TrainingSet.of_all(data.train)
        )
    images = training_set.images
    if store is not None:
        require_data_classes(store, data.classes, data.task)
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    synchronise_norms(network, context.ranks, context.device)
    feed = context.feed(
        images, views, preprocessing, None if store is None else mixed_blocks(store, images)
    )
    targets = None if store is None else Targets(store, feed, spec.seed, codes=loss.reads_codes)
    if store is not None:
        _require_test(store, data.test)
    note("; ".join([f"training on {feed.path}", *training_set.remarks()]))
    if loss.epochs > settings.epochs:
        note(
            f"the loss's schedules last {loss.epochs:g} epochs, but training ends after "
            f"{settings.epochs}; shorten them in the recipe (dkd: kd_weight)"
        )
    loader = Loader(
        feed,
        targets,
        batch_size=settings.batch_size,
        seed=spec.seed,
        n_classes=len(data.classes),
        training_set=training_set,
        features=loss.features,
        division=Division(parts=settings.accumulate, ranks=context.ranks),
        own_rows=loss.row_wise,
        order=settings.order_spec,
        epochs=settings.epochs,
    )
    projection = make_projection(loss, network, loader.teacher_dim, seed=spec.seed)
    if targets is not None and projection is None:
        widths = len(card.classes), targets.width
        projection = make_output_projection(loss, widths, seed=spec.seed)
    held_out = context.feed(data.validation, None, preprocessing)

    def validate(trained: nn.Module) -> Figures:
        if not len(data.validation):
            return context.evaluate(trained, preprocessing, data.validation)
        return evaluate(
            trained,
            held_out,
            context.task,
            batch_size=EVALUATION_BATCH,
            ranks=context.ranks,
            split="validation",
        )

    identity = {
        **spec.identity,
        "weights": begins_with,
        "card": card.to_dict(),
        "views": views.canonical(),
        "settings": settings.to_dict(),
        "seed": spec.seed,
        "lesson": training_set.identity(),
    }
    return fit(
        network,
        loader,
        replace(spec, loss=loss, identity=identity),
        device=context.device,
        evaluate=validate,
        projection=None if projection is None else projection.to(context.device),
        ranks=context.ranks,
    )


def _require_test(store: SoftLabels, images: Split) -> None:
    """Read the store's test logits before training, so that damage is not found hours later."""
    for member in store.members:
        section = member.sections.get("test")
        if section is None or not len(images):
            continue
        section.rows_of(images)
        for shard in member.manifest.layout.shards():
            if shard.section == "test":
                for array in member.manifest.layout.arrays:
                    read_checked(member.location, member.manifest, shard, array)
