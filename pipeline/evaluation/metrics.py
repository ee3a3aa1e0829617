"""How good a classifier is: against the labels, against its teacher, and how well calibrated.

All figures are of un-augmented images. Accuracies and agreement are fractions between 0 and 1;
unlabelled samples count for the teacher's figures only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.device import naming_memory
from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.failures import naming_failure, require_finite_logits
from pipeline.loading.feed import Feed, consecutive
from pipeline.samples.samples import UNLABELLED

_ECE_BINS = 15
# Top-5 says something of more classes than these.
FIRST = 5
_LESS_MEMORY = "evaluate smaller images, or on another device: --device"
# Logits that separate the labels have no best temperature but 0, always wrong ones none but infinity.
_HIGHEST_TEMPERATURE = 100.0
_TOLERANCE = 1e-9
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Figures of one model on one split; None where they cannot be computed.

    Args:
        top1, top5: share of samples whose label is the first, or among the first five, logits; of five
            classes or fewer there is no top-5, which would be 1 whatever the model.
        nll: mean negative log-likelihood of the label, in nats.
        ece: expected calibration error, 15 equal-width bins (Guo et al., arXiv 1706.04599).
        agreement: share of samples on which the model and its teacher have the same first class.
        kl_to_teacher: mean KL(teacher || model) at temperature 1, in nats.

    """

    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    agreement: float | None = None
    kl_to_teacher: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values."""
        return asdict(self)


def evaluate(
    network: nn.Module,
    feed: Feed,
    *,
    batch_size: int,
    teacher_logits: Tensor | None = None,
    ranks: Ranks = SINGLE,
    split: str = "held-out",
) -> Metrics:
    """Evaluate a network on every image of an un-augmented feed.

    Args:
        network: maps the feed's batches to logits; its mode is restored afterwards.
        feed: one split without views.
        batch_size: images a forward pass.
        teacher_logits: (N, C), in the split's order, for agreement and KL.
        ranks: which processes share the work; each gets the figures.
        split: of the images, for messages.

    Raises:
        NotFiniteError: logits are not finite.

    """
    logits = predict(network, feed, batch_size=batch_size, ranks=ranks)
    require_finite_logits(logits, split)
    labels = torch.from_numpy(feed.images.labels).to(logits.device)
    return compare(logits, labels, teacher_logits)


def predict(network: nn.Module, feed: Feed, *, batch_size: int, ranks: Ranks = SINGLE) -> Tensor:
    """Return a network's float32 logits (N, C) on every image of a feed, on the feed's device.

    Raises:
        ModelError: the network fails.
        DeviceError: there is not enough memory.
    """
    was_training, count = network.training, len(feed.images)
    network.eval()
    # Every process has some, or does all that few.
    ranks = ranks if count >= ranks.count else SINGLE
    batches = consecutive(count, min(batch_size, count // ranks.count))
    own = batches[ranks.share(len(batches))]
    with torch.inference_mode():
        with naming_memory(feed.device, f"a forward pass of {batch_size} images", _LESS_MEMORY):
            logits = torch.cat([_logits(network, images) for images in feed.batches(0, own)])
        whole = ranks.assemble(logits, slice(int(own[0][0]), int(own[-1][-1]) + 1), count)
    network.train(was_training)
    return whole


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with naming_failure(f"a forward pass of {len(images)} images"):
        # Some models drop the dimension of a batch of one.
        logits: Tensor = network(images).float().reshape(len(images), -1)
    return logits


def compare(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Metrics:
    """Compute the figures of finite logits (N, C) against labels (N,) and teacher logits (N, C)."""
    known = labels != UNLABELLED
    figures: dict[str, float | None] = {}
    if bool(known.any()):
        figures |= _against_labels(logits[known], labels[known])
    if teacher_logits is not None and len(logits):
        teacher = teacher_logits.to(logits.device)
        log_teacher, log_model = F.log_softmax(teacher, 1), F.log_softmax(logits, 1)
        divergence = F.kl_div(log_model, log_teacher, log_target=True, reduction="none").sum(1)
        same = teacher.argmax(1) == logits.argmax(1)
        figures |= {"agreement": _mean(same), "kl_to_teacher": _mean(divergence)}
    return Metrics(**figures)


def _against_labels(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    first = logits.topk(min(FIRST, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": _mean(first[:, 0]),
        "top5": _mean(first.any(1)) if logits.shape[1] > FIRST else None,
        "nll": _mean(F.cross_entropy(logits, labels, reduction="none")),
        "ece": _calibration_error(logits, labels),
    }


def _calibration_error(logits: Tensor, labels: Tensor) -> float:
    confidence, predicted = F.softmax(logits, 1).double().max(1)
    gap = (predicted == labels).double() - confidence
    bins = (confidence * _ECE_BINS).long().clamp_(0, _ECE_BINS - 1)
    sums = torch.zeros(_ECE_BINS, dtype=torch.float64, device=logits.device)
    return float(sums.index_add_(0, bins, gap).abs().sum() / len(labels))


def _mean(values: Tensor) -> float:
    """Return the mean (N,) in double precision, in which no sum of finite values overflows."""
    return float(values.double().mean())


# Temperature scaling: one number, fitted on validation images, that mends a model's confidence.
#
# Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. It divides the logits, so that
# no first class changes.


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A model with its confidence mended.

    Args:
        temperature: divides its logits, 0.01 to 100.
        nll, ece: of the test images then; None where none of them is labelled.
    """

    temperature: float
    nll: float | None
    ece: float | None


def calibrate(validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Calibration | None:
    """Fit the temperature on one split and judge it on another.

    Args:
        validation: logits (N, C) and labels (N,), -1 for unlabelled.
        test: the same of other images.

    Returns:
        None where no validation image is labelled.
    """
    logits, labels = validation
    known = labels != UNLABELLED
    if not bool(known.any()):
        return None
    temperature = fit_temperature(logits[known], labels[known])
    # In float64: a low temperature may lift finite logits out of float32.
    scaled = compare(test[0].double() / temperature, test[1])
    return Calibration(temperature=temperature, nll=scaled.nll, ece=scaled.ece)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which the mean NLL of logits (N, C) for labels (N,) is lowest.

    NLL is convex in the inverse temperature: Newton's steps in float64, and where one leaves the bracket
    that is known to hold the minimum, its geometric middle instead.
    """
    scores = logits.double()
    right = scores.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _HIGHEST_TEMPERATURE, _HIGHEST_TEMPERATURE
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _derivatives(scores, right, inverse)
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse - before) <= _TOLERANCE * before:
            break
    return 1 / inverse


def _derivatives(scores: Tensor, right: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the mean NLL by the inverse temperature."""
    probabilities = torch.softmax(scores * inverse, 1)
    mean = (probabilities * scores).sum(1)
    variance = (probabilities * (scores - mean[:, None]).square()).sum(1)
    return float((mean - right).mean()), float(variance.mean())
