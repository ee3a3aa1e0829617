"""One run on a prepared dataset: fit a network to its training split, choose the epoch on validation.

Joins feeds, loader and loop; the same for a teacher, a student and a baseline.
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
from pipeline.modalities.table import mixed_blocks
from pipeline.models.checkpoint import ModelCard, state_digest
from pipeline.samples.packed import Split
from pipeline.store.reader import read_checked
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit, make_projection
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
        context: the data and the device.
        network: moved to the device and trained.
        card: of the network.
        spec: what makes the run, beside weights, card, views and training set.
        views: what it is shown; those of the store where there is one.
        store: with the teacher's logits of these views, or several teachers'; or None.
        training_set: the images that are shown; None for all of the training split with a store, else its
            labelled images, once an epoch.

    Raises:
        DataError: there is no store, and no label.
        MismatchError: the store is of other images, or they look otherwise here.
        CorruptStoreError: its logits of the test images, which are compared afterwards, are damaged.
        ConfigError: the loss compares features, and the store keeps none.
        TrainingError: the loss, weights or logits are not finite, or no step counted.
    """
    data, preprocessing, begins_with = context.data, card.preprocessing, state_digest(network)
    loss, settings = spec.loss, spec.settings
    if training_set is None:
        training_set = (
            TrainingSet.of_labelled(data.train) if store is None else TrainingSet.of_all(data.train)
        )
    images = training_set.images
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    synchronise_norms(network, context.ranks, context.device)
    feed = context.feed(
        images, views, preprocessing, None if store is None else mixed_blocks(store, images)
    )
    targets = None if store is None else Targets(store, feed)
    if store is not None:
        _require_test(store, data.test)
    note("; ".join([f"training on {feed.path}", *training_set.remarks()]))
    if loss.epochs > settings.epochs:
        note(
            f"settings of the loss change for {loss.epochs:g} epochs and training ends after "
            f"{settings.epochs}, on the way; shorten their schedules in the recipe (dkd: kd_weight)"
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
    )
    projection = make_projection(loss, network, loader.teacher_dim, seed=spec.seed)
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
        replace(spec, identity=identity),
        device=context.device,
        evaluate=validate,
        projection=None if projection is None else projection.to(context.device),
        ranks=context.ranks,
    )


def _require_test(store: SoftLabels, images: Split) -> None:
    """Read what a student is compared with when it is trained, since hours later is late to refuse it."""
    for member in store.members:
        section = member.sections.get("test")
        if section is None or not len(images):
            continue
        section.rows_of(images)
        for shard, record in member.manifest.shards.items():
            if shard.section == "test":
                for array in record.files:
                    read_checked(member.location, member.manifest, shard, array)
