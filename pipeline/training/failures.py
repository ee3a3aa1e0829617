"""Errors that stop training, each with a cause and a setting to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from pipeline.core.errors import ModelError, NotFiniteError, TrainingError, counted
from pipeline.core.failures import naming_failure, not_finite
from pipeline.core.progress import note
from pipeline.loading.loader import Loader
from pipeline.training.settings import TrainingSettings

# Start of torch's message for a norm that sees one value per channel in training.
_ONE_VALUE = "Expected more than 1 value per channel"
_SHOWN = 3


@contextmanager
def naming_step(loader: Loader) -> Iterator[None]:
    """Turn a network's failure in a step into a one-line error.

    Args:
        loader: loader of the batches.

    Raises:
        TrainingError: a norm sees one value per channel; the message has the arithmetic of the step.
        ModelError: the network fails for another reason.
    """
    size = loader.batch_size
    step = f"step of {counted(size, 'sample')} in {counted(loader.parts, 'part')}"
    try:
        with naming_failure(f"a training {step}"):
            yield
    except ModelError as error:
        if loader.smallest_part > 1 or _ONE_VALUE not in str(error.__cause__):
            raise
        mend = (
            f"lower accumulate to {size // 2} or less"
            if size > 1
            else "add samples to train on, or raise batch_size"
        )
        raise TrainingError(
            f"a {step} feeds the network 1 sample at a time, so its batch norms see one value per channel; "
            f"expected at least 2 samples per part; {mend}, or choose a model without batch norms"
        ) from error


@contextmanager
def naming_epoch(epoch: int, network: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Add epoch and likely cause to the error of an evaluation with non-finite logits.

    Args:
        epoch: epoch before the evaluation, counted from 1.
        network: evaluated network.
        settings: settings of the run.

    Raises:
        TrainingError: logits are not finite.
    """
    try:
        yield
    except NotFiniteError as error:
        names = not_finite(network)
        cause = (
            f", because the network's {_listed(names)} {'is' if len(names) == 1 else 'are'} not finite"
            if names
            else ""
        )
        raise TrainingError(
            f"after epoch {epoch}: {error}{cause}; {_remedy(settings)}, or correct the model's code"
        ) from error


def require_finite_state(epoch: int, network: nn.Module, settings: TrainingSettings) -> None:
    """Refuse non-finite weights, from which no step recovers, so that they are never saved.

    Args:
        epoch: current or just finished epoch, counted from 1.
        network: trained network.
        settings: settings of the run.

    Raises:
        TrainingError: a weight, or a running statistic of a norm, is not finite.
    """
    names = not_finite(network)
    if names:
        raise TrainingError(
            f"in epoch {epoch}: the network's {_listed(names)} became infinite or NaN; expected finite "
            f"numbers; {_remedy(settings)}"
        )


def require_learning(skipped: int, steps: int) -> None:
    """Refuse the result of a run if all steps were skipped.

    Raises:
        TrainingError: all steps were skipped.
    """
    if skipped == steps:
        raise TrainingError(
            f"nothing was learnt: fp16 gradients overflowed in all {steps:,} steps of the run, so every "
            "step was skipped; train longer, or use precision: bf16 or fp32"
        )


def tell_without_loss(losses: Sequence[float], epochs: int) -> None:
    """Tell, after the first epoch and after the last one, that the loss has been 0 in every step so far.

    Args:
        losses: mean loss of each epoch so far.
        epochs: of the whole run.
    """
    if len(losses) in (1, epochs) and not any(losses):
        note(
            "nothing is learnt: the loss was exactly 0 in every step so far; expected a term above 0; "
            "check that samples have labels, and the loss and its weights"
        )


def _remedy(settings: TrainingSettings) -> str:
    precision = "" if settings.precision == "fp32" else " or use precision: fp32"
    return f"lower learning_rate (now {settings.learning_rate:g}){precision}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
