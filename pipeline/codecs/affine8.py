"""`affine8`: each row on its own uniform grid of 256 levels, from its minimum to its maximum.

With m the row's maximum and r its range, scale = fp16(r / 255) and code = round((logit - m) / scale) +
255, kept as uint8; decoded is (code - 255) * scale. The maximum has the code 255, so it needs no offset.

Bytes: C + 2 a sample. Error: at most scale / 2 a logit, and one step more at the minimum, where the
rounding of the scale can cut. Ranges up to 1.6e7 are kept; a range below 1.5e-5 becomes 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.codecs.codec import Arrays, ArraySpec, Codec

_TOP = 255


def _arrays(num_classes: int) -> Mapping[str, ArraySpec]:
    return {"codes": ArraySpec("uint8", (num_classes,)), "scale": ArraySpec("float16", ())}


def _encode(logits_BC: Tensor) -> Arrays:
    relative = logits_BC - logits_BC.amax(1, keepdim=True)
    scale = (relative.amin(1) / -_TOP).to(torch.float16)
    # A scale of 0 (all logits equal) must not divide; its codes are all 255.
    steps = relative / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = (steps.round() + _TOP).clamp(0, _TOP)
    return {"codes": codes.to(torch.uint8), "scale": scale}


def _decode(arrays: Mapping[str, Tensor]) -> Tensor:
    return (arrays["codes"].float() - _TOP) * arrays["scale"].float()[:, None]


CODEC = Codec(name="affine8", version=1, arrays=_arrays, encode=_encode, decode=_decode)
