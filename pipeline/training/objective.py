"""What a step makes small: a loss of what a network gives, and with a loss of features of what lies before.

The one place where training treats losses of features otherwise than losses of logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.distributed import Ranks
from pipeline.loading.loader import Batch
from pipeline.losses import Features, ScheduledLoss
from pipeline.models.auxiliary import weighted_logits
from pipeline.models.heads import WithFeatures, feature_dim, head_of


def make_projection(
    loss: ScheduledLoss, network: nn.Module, teacher_dim: int | None, *, seed: int
) -> nn.Module | None:
    """Return what brings the features of student and teacher together, to be trained; None for nothing.

    Args:
        loss: that may ask for it.
        network: the student.
        teacher_dim: how many features the teacher has.
        seed: of its weights.

    Raises:
        ModelError: the student has no last layer.
    """
    if loss.features is None or loss.features.projection is None or teacher_dim is None:
        return None
    _, head = head_of(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loss.features.projection(feature_dim(head), teacher_dim)


class Objective:
    """The loss of a batch.

    Args:
        loss: of logits and labels, and maybe features.
        projection: of features, or None.
        ranks: this process among those that share each batch.
    """

    def __init__(self, loss: ScheduledLoss, projection: nn.Module | None, ranks: Ranks) -> None:
        self._loss, self._projection, self._ranks = loss, projection, ranks
        self._opened: WithFeatures | None = None

    def called(self, network: nn.Module) -> nn.Module:
        """Return a network as it is to be called, so that it gives what `of` takes; until `close`."""
        if self._loss.features is None:
            return network
        self._opened = WithFeatures(network)
        return self._opened

    def close(self) -> None:
        """Leave the network as it was."""
        if self._opened is not None:
            self._opened.close()

    def of(self, outputs: Any, batch: Batch, epoch: float) -> Tensor:
        """Return the loss () of a whole batch; gradients reach this process's rows of it.

        Args:
            outputs: of the network for this process's images.
            batch: whose images they were.
            epoch: that are done, with the fraction of the one under way.
        """
        outputs, features = (outputs, None) if self._loss.features is None else outputs
        loss, beside = self._loss.at(epoch), self._beside(features, batch)
        losses = []
        for weight, own in weighted_logits(outputs):
            logits = self._whole(own, batch)
            losses.append(weight * loss(logits, batch.labels, batch.teacher_logits, *beside))
            # Auxiliary heads learn as the network's own does, but its features only once.
            beside = [_detached(features) for features in beside]
        return torch.stack(losses).sum()

    def _beside(self, features: Tensor | None, batch: Batch) -> list[Features]:
        if features is None or batch.teacher_features is None:
            return []
        together = batch.teacher_features.beside(self._whole(features, batch))
        return [together if self._projection is None else self._projection(together)]

    def _whole(self, own: Tensor, batch: Batch) -> Tensor:
        return self._ranks.assemble(own.float(), batch.own, len(batch.rows))


def _detached(features: Features) -> Features:
    negatives = None if features.negatives is None else features.negatives.detach()
    student, teacher = features.student.detach(), features.teacher.detach()
    return replace(features, student=student, teacher=teacher, negatives=negatives)
