"""`topk`: the K likeliest classes, and one level for all others.

Four arrays are kept: the classes' indices, ascending, as gaps to the one before; their logits on a grid of
256 levels below the row's maximum, as in `affine8`, in codes and scale; and tail = fp16(log mean
exp(logit - maximum)) over the other classes. Decoding gives every other class the tail's level. Softmax is
then a distribution however the values were rounded, and its mass outside the K classes is the teacher's at
T = 1.

A gap takes 1, 2 or 3 bytes, depending on the number of classes, low bytes first. High bytes are nearly
always 0 and cost nothing after Zstandard. Bytes before compression: 2 to 4 times K, + 4 per sample. Error:
the shape of the tail is lost; at T > 1 its mass too. If classes tie for the last place, any may be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.codecs.base import Arrays, ArraySpec, Codec, TeacherOutput
from pipeline.codecs.dense import from_grid, to_grid
from pipeline.codecs.rule import Rule
from pipeline.core.errors import ConfigError

# e.g. classes 2, 3 and 300 of 1000: two planes, low bytes and high bytes, each (K,):
#     gaps = [2, 3 - 2 - 1, 300 - 3 - 1] = [2, 0, 296]
#     planes = [2, 0, 40], [0, 0, 1]    (296 = 40 + 256 * 1)
# and back: (gaps + 1).cumsum() - 1 = [3, 4, 301] - 1 = [2, 3, 300].
_TOP = 255


def topk(kept: int, n_classes: int) -> Codec:
    """Return the codec that keeps K of C classes, 0 < K < C.

    Raises:
        ConfigError: K is out of range.
    """
    if not 0 < kept < n_classes:
        raise ConfigError(
            f"codec is 'topk-{kept}'; expected 1 to {n_classes - 1} for {n_classes} classes; change the "
            "number, or use a dense codec"
        )
    planes = max(1, math.ceil(math.log2(n_classes) / 8))

    def encode(output: TeacherOutput, rule: Rule) -> Arrays:
        logits = rule.kept(output.logits)
        index = logits.topk(kept, 1).indices.sort(1).values
        codes, scale = to_grid(logits.gather(1, index), _TOP)
        gaps = torch.diff(index, dim=1, prepend=torch.full_like(index[:, :1], -1)) - 1
        return {
            "gaps": torch.stack([(gaps >> 8 * p) & 255 for p in range(planes)], 1).to(torch.uint8),
            "codes": codes,
            "scale": scale,
            "tail": _tail(logits, index),
        }

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        # Forged gaps must not index out of range: on a GPU that would end the process.
        index = _indices(arrays["gaps"]).clamp(max=n_classes - 1)
        values = from_grid(arrays["codes"], arrays["scale"], _TOP)
        dense = arrays["tail"].float()[:, None].repeat(1, n_classes)
        return dense.scatter(1, index, values)

    def is_valid(arrays: Mapping[str, Tensor]) -> bool:
        return bool((_indices(arrays["gaps"]) < n_classes).all())

    return Codec(
        name=f"topk-{kept}",
        version=1,
        arrays={
            "gaps": ArraySpec("uint8", (planes, kept)),
            "codes": ArraySpec("uint8", (kept,)),
            "scale": ArraySpec("float16", ()),
            "tail": ArraySpec("float16", ()),
        },
        encode=encode,
        decode=decode,
        kept=kept,
        is_valid=is_valid,
    )


def _indices(gaps_BPK: Tensor) -> Tensor:
    """Return the classes (B, K) int64, ascending, from gaps of P bytes."""
    weights = 256 ** torch.arange(gaps_BPK.shape[1], device=gaps_BPK.device)
    gaps = (gaps_BPK.long() * weights[:, None]).sum(1)
    return (gaps + 1).cumsum(1) - 1


def _tail(logits_BC: Tensor, kept_BK: Tensor) -> Tensor:
    """Return log mean exp of the other classes; in float64, so that devices agree to the last kept bit."""
    others = logits_BC.double().scatter(1, kept_BK, -math.inf)
    count = logits_BC.shape[1] - kept_BK.shape[1]
    level = torch.logsumexp(others, 1) - math.log(count)
    return level.clamp(min=torch.finfo(torch.float16).min).to(torch.float16)
