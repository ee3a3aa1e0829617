"""Failures of networks: errors raised by torch or a model's code, and values that are not finite."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError, NotFiniteError, PipelineError, first_of, is_out_of_memory

# Errors that torch, and code on top of it, raises for unsuitable inputs.
_KINDS = (
    *(RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, ArithmeticError),
)
# Above this, the difference of two float32 logits, and so every loss, may be infinite.
_LARGEST_LOGIT = torch.finfo(torch.float32).max / 4
_LONGEST_REASON = 300


@contextmanager
def naming_failure(work: str) -> Iterator[None]:
    """Turn a network's failure into one line; a lack of memory is left to `naming_memory`.

    Args:
        work: of the network, for the message.

    Raises:
        ModelError: the network failed; `--debug` shows the traceback.
    """
    try:
        yield
    except _KINDS as error:
        if isinstance(error, PipelineError) or is_out_of_memory(error):
            raise
        reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
        raise ModelError(
            f"{work} failed ({type(error).__name__}: {reason}); expected a network that accepts these "
            "samples; correct the model or its options; --debug shows the traceback"
        ) from error


def require_finite_logits(logits: Tensor, split: str) -> None:
    """Refuse logits (N, C) of a split if a row has a value that a loss cannot use.

    Raises:
        NotFiniteError: with the share of such rows.
    """
    # `<=` is false for NaN, `>` would be too: the negation catches NaN.
    bad = int((~(logits.abs() <= _LARGEST_LOGIT)).any(1).sum())
    if bad:
        raise NotFiniteError(
            f"logits of {bad:,} of {len(logits):,} {split} samples ({bad / len(logits):.1%}) are not "
            "finite; expected finite numbers"
        )


def require_finite_weights(network: nn.Module, origin: object) -> None:
    """Refuse a network if a parameter, or a running statistic of a norm, is not finite.

    Args:
        network: on any device.
        origin: of its weights, for the message.

    Raises:
        NotFiniteError: naming the tensors.
    """
    names = not_finite(network)
    if names:
        raise NotFiniteError(
            f"{origin}: weights are not finite: {first_of(names)}; expected finite numbers; use different "
            "weights, or retrain with a lower learning_rate"
        )


def not_finite(network: nn.Module) -> list[str]:
    """Return the names of parameters and running statistics that are not finite.

    Other buffers may be infinite on purpose, e.g. attention masks.
    """
    buffers = ((n, b) for n, b in network.named_buffers() if n.rpartition(".")[2].startswith("running_"))
    tensors = {**dict(network.named_parameters()), **dict(buffers)}
    if not tensors:
        return []
    # One synchronisation with the device for all tensors.
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()]).tolist()
    return [name for name, holds in zip(tensors, finite, strict=True) if not holds]
