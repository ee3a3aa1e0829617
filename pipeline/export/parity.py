"""Whether a file computes what the network does: both on the same images, in batches of several sizes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import ModelError
from pipeline.export.deployment import Deployment
from pipeline.export.formats import Run
from pipeline.loading.feed import Feed

# One image is what a service is asked for; three is not the traced size, nor a multiple of it.
_FIRST_BATCHES = (1, 3)
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far a file's logits are from the network's.

    Args:
        images: compared.
        batch_sizes: in which they were fed.
        max_abs_diff: largest difference of a logit.
        largest_logit: of the network, in magnitude.
        top1_agreement: share of images with the same first class.
    """

    images: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    largest_logit: float
    top1_agreement: float

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        if not self.largest_logit:
            return math.inf if self.max_abs_diff else 0.0
        return self.max_abs_diff / self.largest_logit

    def require(self, threshold: float) -> None:
        """Refuse a file that computes something else.

        Args:
            threshold: largest `relative` that is rounding. Folded batch norms and another order of float32
                sums moved the logits of 17 torchvision networks by 3e-7 to 9e-5 of the largest one.

        Raises:
            ModelError: the difference is larger, or no number.
        """
        if not self.relative <= threshold:
            raise ModelError(
                f"the exported network computes something else: {self}; expected at most {threshold:g} of "
                "the largest logit; nothing was written; use the other format, or raise --threshold"
            )

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"{self.images} images in batches of {sizes}: logits differ by at most "
            f"{self.max_abs_diff:.2g}, {self.relative:.1g} of the largest ({self.largest_logit:.3g}); "
            f"top-1 agreement {self.top1_agreement:.4f}"
        )


def measure_parity(deployment: Deployment, run: Run, feed: Feed) -> Parity:
    """Compare on every image of a feed.

    Args:
        deployment: with the network as it is.
        run: the file's bytes, loaded.
        feed: un-augmented images, at least one, with the network's eyes, on the CPU.
    """
    batches = _batches(len(feed.images))
    ours, theirs = [], []
    for pixels in feed.rendered((0, rows) for rows in batches):
        ours.append(deployment.logits(pixels))
        theirs.append(run(deployment.inputs(pixels)))
    network, exported = torch.cat(ours), torch.cat(theirs)
    return Parity(
        images=len(network),
        batch_sizes=tuple(sorted({len(rows) for rows in batches})),
        max_abs_diff=float((network - exported).abs().max()),
        largest_logit=float(network.abs().max()),
        top1_agreement=float((network.argmax(1) == exported.argmax(1)).double().mean()),
    )


def _batches(count: int) -> list[NDArray[np.int64]]:
    """Cut 0..count-1 into the first batches' sizes and then equal ones."""
    ends = itertools.accumulate(itertools.chain(_FIRST_BATCHES, itertools.repeat(_BATCH)))
    inner = list(itertools.takewhile(lambda end: end < count, ends))
    return np.split(np.arange(count), inner)
