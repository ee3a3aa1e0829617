"""Several small codes in one byte: Zstandard spends at least a bit on each byte, whatever it holds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pack(codes: Tensor, levels: int) -> Tensor:
    """Pack codes of few levels, as many in a byte as fit.

    Args:
        codes: (B, n) uint8, each below `levels`.
        levels: 2 to 256.

    Returns:
        (B, ceil(n / p)) uint8 for p = `codes_per_byte(levels)`; a byte holds p neighbours as digits in
        base `levels`, the first lowest; what is missing at the end counts as 0.
    """
    per_byte = codes_per_byte(levels)
    padded = F.pad(codes, (0, -codes.shape[1] % per_byte))
    digits = padded.view(len(codes), -1, per_byte).unbind(2)
    byte = digits[-1]
    for digit in reversed(digits[:-1]):
        byte = byte * levels + digit
    return byte


def unpack(packed: Tensor, levels: int, count: int) -> Tensor:
    """Return the first `count` codes (B, count) uint8 that `pack` put into bytes."""
    digits, rest = [], packed
    for _ in range(codes_per_byte(levels)):
        digits.append(rest % levels if levels < 256 else rest)
        rest = rest // levels if levels < 256 else rest
    return torch.stack(digits, 2).flatten(1)[:, :count]


def codes_per_byte(levels: int) -> int:
    """Return how many codes of `levels` levels one byte holds."""
    return next(n for n in range(8, 0, -1) if levels**n <= 256)
