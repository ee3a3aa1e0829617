"""Codecs that keep every output: `fp16`, and `affine8`, `affine6`, `affine4` on one grid per row.

With m the row's maximum, r its range and L levels, scale = fp16(r / (L - 1)) and code = round((logit - m)
/ scale) + L - 1; the decoded value is (code - L + 1) * scale. The maximum has the highest code, so it needs
no offset. Codes of 8 and 6 bits take one byte each, which Zstandard shrinks further; two codes of 4 bits
share a byte.

Bytes before compression: C + 2 per sample, C / 2 + 2 with 4 bits. Error: at most scale / 2 per logit, plus
half the scale's rounding times the levels at the minimum. Ranges up to 65504 (L - 1) are kept; a range
below 6e-8 (L - 1) becomes 0. Logits must be finite.

Outputs that are absolute, e.g. of sigmoids, also need the maximum: float32, 4 bytes more per sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import Arrays, ArraySpec, Codec, TeacherOutput
from pipeline.codecs.rule import Rule

# `fp16`: the part that the rule keeps, in half precision; for a softmax the logit minus its row's maximum.
#
# Bytes before compression: 2 C per sample. Error: half a unit in the last of 11 bits. It is smallest for
# the likely classes, which are near 0 and matter most. A softmax's are clamped to -65504 ... 65504.


_LARGEST = torch.finfo(torch.float16).max


def fp16(n_classes: int, *, absolute: bool = False) -> Codec:
    """Return the codec `fp16`.

    Args:
        n_classes: C.
        absolute: refuse values beyond the largest one; of a softmax, they are 0 anyway.
    """

    def encode(output: TeacherOutput, rule: Rule) -> Arrays:
        kept = rule.kept(output.logits)
        # Beyond the largest value, float16 is infinite, which a dump refuses by the sample's name.
        return {"logits": (kept if absolute else kept.clamp(-_LARGEST, _LARGEST)).to(torch.float16)}

    return Codec(
        name="fp16",
        version=1,
        arrays={"logits": ArraySpec("float16", (n_classes,))},
        encode=encode,
        decode=_decode,
    )


def _decode(arrays: Mapping[str, Tensor]) -> Tensor:
    return arrays["logits"].float()


# A uniform grid below each row's maximum; `affine` and `topk` store its codes.
#
# e.g. top 15 (16 levels), relative row [0, -3, -7.5]:
#     scale = 7.5 / 15 = 0.5
#     codes = [0, -6, -15] + 15 = [15, 9, 0]
#     decoded = (codes - 15) * 0.5 = [0, -3, -7.5]


def to_grid(relative: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Round each row to a grid of top + 1 levels from its minimum to 0.

    Args:
        relative: (B, n) float32, at most 0.
        top: the highest code, which means 0.

    Returns:
        (B, n) uint8 codes and (B,) float16 scales, the distance between two levels.
    """
    scale = (relative.amin(1) / -top).to(torch.float16)
    # If all values are equal, the scale is 0: avoid 0 / 0, and give every value the highest code.
    steps = relative / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    # A scale rounded down by fp16 puts the minimum below code 0; hence the clamp.
    return (steps.round() + top).clamp(0, top).to(torch.uint8), scale


def from_grid(codes: Tensor, scale: Tensor, top: int) -> Tensor:
    """Return the values (B, n) float32 that `to_grid` rounded."""
    values: Tensor = (codes.float() - top) * scale.float()[:, None]
    return values


# Several small codes in one byte: Zstandard spends at least a bit on each byte, however few its values.
#
# e.g. 16 levels, codes [3, 5, 1]: two digits per byte, the first one lowest, padded with 0:
#     [3, 5], [1, 0]  ->  3 + 16 * 5 = 83,  1 + 16 * 0 = 1
# and back: 83 % 16 = 3, 83 // 16 = 5.


def pack(codes: Tensor, levels: int) -> Tensor:
    """Pack codes of few levels, as many per byte as fit.

    Args:
        codes: (B, n) uint8, each below `levels`.
        levels: 2 to 256.

    Returns:
        (B, ceil(n / p)) uint8 for p = `codes_per_byte(levels)`; a byte holds p neighbours as digits in
        base `levels`, the first lowest; missing codes at the end count as 0.
    """
    per_byte = codes_per_byte(levels)
    padded = F.pad(codes, (0, -codes.shape[1] % per_byte))
    # (B, n / p, p) -> p tensors (B, n / p). uint8 cannot overflow below: levels**p <= 256.
    digits = padded.view(len(codes), -1, per_byte).unbind(2)
    byte = digits[-1]
    for digit in reversed(digits[:-1]):
        byte = byte * levels + digit
    return byte


def unpack(packed: Tensor, levels: int, count: int) -> Tensor:
    """Return the first `count` codes (B, count) uint8 from bytes that `pack` filled."""
    digits, rest = [], packed
    # With 256 levels a byte is one code, and uint8 has no divisor 256.
    for _ in range(codes_per_byte(levels)):
        digits.append(rest % levels if levels < 256 else rest)
        rest = rest // levels if levels < 256 else rest
    return torch.stack(digits, 2).flatten(1)[:, :count]


def codes_per_byte(levels: int) -> int:
    """Return the number of codes of `levels` levels in one byte, e.g. 3 for 6 levels: 6**3 = 216."""
    return next(n for n in range(8, 0, -1) if levels**n <= 256)


def affine(bits: int, n_classes: int, *, absolute: bool = False) -> Codec:
    """Return the codec with 8, 6 or 4 bits per output.

    Args:
        bits: 8, 6 or 4.
        n_classes: C.
        absolute: keep each row's maximum, too.
    """
    top = 2**bits - 1
    paired = bits == 4

    def encode(output: TeacherOutput, rule: Rule) -> Arrays:
        kept = rule.kept(output.logits)
        maximum = kept.amax(1) if absolute else None
        codes, scale = to_grid(kept if maximum is None else kept - maximum[:, None], top)
        arrays = {"codes": pack(codes, 16) if paired else codes, "scale": scale}
        return arrays if maximum is None else {**arrays, "maximum": maximum}

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        codes = unpack(arrays["codes"], 16, n_classes) if paired else arrays["codes"]
        below = from_grid(codes, arrays["scale"], top)
        return below + arrays["maximum"][:, None] if absolute else below

    width = (n_classes + 1) // 2 if paired else n_classes
    arrays = {"codes": ArraySpec("uint8", (width,)), "scale": ArraySpec("float16", ())}
    return Codec(
        name=f"affine{bits}",
        version=1,
        arrays={**arrays, "maximum": ArraySpec("float32", ())} if absolute else arrays,
        encode=encode,
        decode=decode,
    )
