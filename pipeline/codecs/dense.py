"""Codecs that keep every logit: `fp16`, and `affine8`, `affine6`, `affine4` on a grid of each row's own.

With m the row's maximum, r its range and L levels, scale = fp16(r / (L - 1)) and code = round((logit - m)
/ scale) + L - 1; decoded is (code - L + 1) * scale. The maximum has the highest code, so it needs no
offset. Codes of 8 and 6 bits take a byte each, which Zstandard shrinks further; of 4 bits, two share one.

Bytes before compression: C + 2 a sample, C / 2 + 2 for 4 bits. Error: at most scale / 2 a logit, and
half the scale's rounding times the levels more at the minimum. Ranges up to 65504 (L - 1) are kept; one
below 6e-8 (L - 1) becomes 0. Logits must be finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import Arrays, ArraySpec, Codec, TeacherOutput
from pipeline.codecs.rule import Rule

# `fp16`: what the rule keeps, as half-precision numbers; of a softmax the logit minus its row's maximum.
#
# Bytes before compression: 2 C a sample. Error: half a unit in the last of 11 bits, smallest where it
# matters: the likely classes are near 0. Values beyond -65504 and 65504 become these.


_LARGEST = torch.finfo(torch.float16).max


def fp16(n_classes: int) -> Codec:
    """Return the codec."""
    return Codec(
        name="fp16",
        version=1,
        arrays={"logits": ArraySpec("float16", (n_classes,))},
        encode=_encode,
        decode=_decode,
    )


def _encode(output: TeacherOutput, rule: Rule) -> Arrays:
    return {"logits": rule.kept(output.logits).clamp(-_LARGEST, _LARGEST).to(torch.float16)}


def _decode(arrays: Mapping[str, Tensor]) -> Tensor:
    return arrays["logits"].float()


# A row's uniform grid below its maximum: what `affine` and `topk` keep values on.


def to_grid(relative: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Round each row to a grid of top + 1 levels from its minimum to 0.

    Args:
        relative: (B, n) float32, at most 0.
        top: the highest code, which stands for 0.

    Returns:
        (B, n) uint8 codes and (B,) float16 scales, the distance of two levels.
    """
    scale = (relative.amin(1) / -top).to(torch.float16)
    # A scale of 0 (all values equal) must not divide; its codes are all the highest.
    steps = relative / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return (steps.round() + top).clamp(0, top).to(torch.uint8), scale


def from_grid(codes: Tensor, scale: Tensor, top: int) -> Tensor:
    """Return the values (B, n) float32 that `to_grid` rounded."""
    values: Tensor = (codes.float() - top) * scale.float()[:, None]
    return values


# Several small codes in one byte: Zstandard spends at least a bit on each byte, whatever it holds.


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


def affine(bits: int, n_classes: int) -> Codec:
    """Return the codec of 8, 6 or 4 bits a logit."""
    top = 2**bits - 1
    paired = bits == 4

    def encode(output: TeacherOutput, rule: Rule) -> Arrays:
        codes, scale = to_grid(rule.kept(output.logits), top)
        return {"codes": pack(codes, 16) if paired else codes, "scale": scale}

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        codes = unpack(arrays["codes"], 16, n_classes) if paired else arrays["codes"]
        return from_grid(codes, arrays["scale"], top)

    width = (n_classes + 1) // 2 if paired else n_classes
    return Codec(
        name=f"affine{bits}",
        version=1,
        arrays={"codes": ArraySpec("uint8", (width,)), "scale": ArraySpec("float16", ())},
        encode=encode,
        decode=decode,
    )
