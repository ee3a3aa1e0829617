"""`affine8`, `affine6`, `affine4`: each row on its own uniform grid of 256, 64 or 16 levels.

With m the row's maximum, r its range and L levels, scale = fp16(r / (L - 1)) and code = round((logit - m)
/ scale) + L - 1; decoded is (code - L + 1) * scale. The maximum has the highest code, so it needs no
offset. Codes of 8 and 6 bits take a byte each, which Zstandard shrinks further; of 4 bits, two share one.

Bytes before compression: C + 2 a sample, C / 2 + 2 for 4 bits. Error: at most scale / 2 a logit, and
half the scale's rounding times the levels more at the minimum. Ranges up to 65504 (L - 1) are kept; one
below 6e-8 (L - 1) becomes 0. Logits must be finite.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.codecs.codec import Arrays, ArraySpec, Codec, TeacherOutput, relative
from pipeline.codecs.grid import from_grid, to_grid
from pipeline.codecs.packing import pack, unpack


def affine(bits: int, n_classes: int) -> Codec:
    """Return the codec of 8, 6 or 4 bits a logit."""
    top = 2**bits - 1
    paired = bits == 4

    def encode(output: TeacherOutput) -> Arrays:
        codes, scale = to_grid(relative(output.logits), top)
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
