"""`fp16`: the logit minus its row's maximum, as a half-precision number.

Bytes: 2 C a sample. Error: half a unit in the last of 11 bits, smallest where it matters: the likely
classes are near 0. Values below -65504 become -65504.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.codecs.codec import Arrays, ArraySpec, Codec

_LOWEST = -65504.0


def _arrays(num_classes: int) -> Mapping[str, ArraySpec]:
    return {"logits": ArraySpec("float16", (num_classes,))}


def _encode(logits_BC: Tensor) -> Arrays:
    relative = logits_BC - logits_BC.amax(1, keepdim=True)
    return {"logits": relative.clamp(min=_LOWEST).to(torch.float16)}


def _decode(arrays: Mapping[str, Tensor]) -> Tensor:
    return arrays["logits"].float()


CODEC = Codec(name="fp16", version=1, arrays=_arrays, encode=_encode, decode=_decode)
