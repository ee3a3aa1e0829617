"""Run context: dataset, task, device, rendering threads and ranks of a run.

Owns the loop over every sample of an un-augmented split; figures belong to the task.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.device import naming_memory, to_device
from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.failures import naming_failure, require_finite_logits
from pipeline.loading.feed import Feed, consecutive
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import SPLITS
from pipeline.samples.packed import Split
from pipeline.tasks.task import Figures, Task

EVALUATION_BATCH = 500
_LESS_MEMORY = "use smaller inputs, or a different device: --device"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Dataset, task, device, rendering threads and ranks of a run.

    Args:
        data: the prepared dataset.
        task: the meaning of models' outputs.
        device: the device of all models and batches.
        workers: number of rendering threads.
        on_device: render on the device instead of the CPU, with the same pixels; None chooses.
        ranks: this process among those that train a network together.

    """

    data: PreparedData
    task: Task
    device: torch.device
    workers: int
    on_device: bool | None = None
    ranks: Ranks = SINGLE

    def under(self, task: Task) -> RunContext:
        """Return this context with another task, e.g. of a teacher that gives embeddings."""
        return self if task.name == self.task.name else replace(self, task=task)

    def feed(
        self,
        images: Split,
        spec: Views | None,
        preprocessing: Preprocessing,
        blocks: NDArray[np.int64] | None = None,
    ) -> Feed:
        """Return a feed of one split for a model with this preprocessing.

        Args:
            images: the split.
            spec: the view spec; None for un-augmented images.
            preprocessing: the model's preprocessing.
            blocks: (N,) the store's block of each image; needed only if views mix images.
        """
        return Feed(
            images,
            spec,
            preprocessing,
            device=self.device,
            workers=self.workers,
            blocks=blocks,
            on_device=self.on_device,
        )

    def evaluate(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        images: Split,
        teacher_logits: Tensor | None = None,
    ) -> Figures:
        """Evaluate a network on the un-augmented samples of a split; an empty split has no figures."""
        return self.task.compare(*self.predict(network, preprocessing, images), teacher_logits)

    def predict(
        self, network: nn.Module, preprocessing: Preprocessing, images: Split
    ) -> tuple[Tensor, Tensor]:
        """Return a network's logits (N, C) on the un-augmented samples of a split, and their labels (N,).

        Raises:
            NotFiniteError: logits are not finite.
        """
        labels = torch.from_numpy(images.labels).to(self.device)
        if not len(images):
            return torch.zeros(0, len(self.data.classes), device=self.device), labels
        feed = self.feed(images, None, preprocessing)
        logits = predict(network, feed, batch_size=EVALUATION_BATCH)
        require_finite_logits(logits, self._split_of(images))
        return logits, labels

    def _split_of(self, images: Split) -> str:
        return next((name for name in SPLITS if getattr(self.data, name) is images), "held-out")


def evaluate(
    network: nn.Module,
    feed: Feed,
    task: Task,
    *,
    batch_size: int,
    teacher_logits: Tensor | None = None,
    ranks: Ranks = SINGLE,
    split: str = "held-out",
) -> Figures:
    """Evaluate a network on every sample of an un-augmented feed.

    Args:
        network: maps the feed's batches to logits; its mode is restored afterwards.
        feed: one split without views.
        task: the meaning of outputs.
        batch_size: samples per forward pass.
        teacher_logits: (N, C), in the split's order, for agreement and KL.
        ranks: the processes that share the work; each gets the figures.
        split: the split's name in messages.

    Raises:
        NotFiniteError: logits are not finite.

    """
    logits = predict(network, feed, batch_size=batch_size, ranks=ranks)
    require_finite_logits(logits, split)
    labels = torch.from_numpy(feed.images.labels).to(logits.device)
    return task.compare(logits, labels, teacher_logits)


def predict(network: nn.Module, feed: Feed, *, batch_size: int, ranks: Ranks = SINGLE) -> Tensor:
    """Return a network's float32 logits (N, C) on every sample of a feed, on the feed's device.

    Raises:
        ModelError: the network fails.
        DeviceError: the device has too little memory.
    """
    was_training, count = network.training, len(feed.images)
    network.eval()
    # Each rank needs at least one sample; with fewer samples than ranks, every rank computes all of them.
    ranks = ranks if count >= ranks.count else SINGLE
    batches = consecutive(count, min(batch_size, count // ranks.count))
    own = batches[ranks.share(len(batches))]
    # Samples of similar length share a batch; the logits return to the split's order.
    order = feed.arrange(0, np.arange(count))
    with torch.inference_mode():
        with naming_memory(feed.device, f"a forward pass of {batch_size} samples", _LESS_MEMORY):
            seen = feed.batches(0, [order[places] for places in own])
            logits = torch.cat([_logits(network, images) for images in seen])
        whole = ranks.assemble(logits, slice(int(own[0][0]), int(own[-1][-1]) + 1), count)
    network.train(was_training)
    return whole[to_device(np.argsort(order), whole.device)]


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with naming_failure(f"a forward pass of {len(images)} samples"):
        # Some models drop the dimension of a batch of one.
        logits: Tensor = network(images).float().reshape(len(images), -1)
    return logits
