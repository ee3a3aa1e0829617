"""Where models meet the data: a prepared dataset, a device, and the threads that feed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.failures import require_finite_logits
from pipeline.evaluation.metrics import Metrics, compare, predict
from pipeline.loading.feed import Feed
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import Preprocessing, Views
from pipeline.samples.description import SPLITS
from pipeline.samples.packed import Split

EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where models of a run meet the data.

    Args:
        data: the prepared dataset.
        device: where everything runs.
        workers: rendering threads.
        on_device: render on the device instead of the CPU, the same pixels; None where it suits.
        ranks: this process among those that train a network together.

    """

    data: PreparedData
    device: torch.device
    workers: int
    on_device: bool | None = None
    ranks: Ranks = SINGLE

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
            spec: which views there are; None for the un-augmented image.
            preprocessing: the model's eyes.
            blocks: (N,) where views mix, which block of the store each image lies in.
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
    ) -> Metrics:
        """Evaluate a network on a split's un-augmented images; an empty split has no figures."""
        return compare(*self.predict(network, preprocessing, images), teacher_logits)

    def predict(
        self, network: nn.Module, preprocessing: Preprocessing, images: Split
    ) -> tuple[Tensor, Tensor]:
        """Return a network's logits (N, C) of a split's un-augmented images, and their labels (N,).

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
