"""`features`: the teacher's penultimate activations, quantised for the softmax that is made of them.

The teacher's last layer maps features x (D) to logits W x + b (C). Kept are a digit v_j a feature and, once
a store, W, b and a table of the values that each feature's digits stand for:

    byte, place -> v_j = codes[byte_j] // place_j mod levels_j
    x_j = table[j, v_j],    logits = W x + b

Decoding is a matmul, and gives all classes at any temperature; bytes do not depend on how many there are.
Two or more digits of few levels share a byte, and bytes lie column by column, so that Zstandard's codes
fit them. At level 16 it takes a tenth less than at level 1 here, and 0.2 ms a row in the writer's threads.

Digits are not the nearest ones but those that are best together: see `shaping`. How fine the tables are is
found on the pilot, by a budget of divergence: see `fitting`. Bytes before compression: about D / 3 at a
mean KL of 1e-3. Error: as budgeted on the pilot; each dump measures its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.codec import Arrays, ArraySpec, Codec, FeatureDecoder, TeacherOutput, relative
from pipeline.codecs.shaping import Shaping
from pipeline.core.errors import quoted

NAME = "features"
# dtype and axes of what a store keeps once: C classes, D features, L digits.
STATE: Mapping[str, tuple[str, str]] = {
    "weight": ("float32", "CD"),
    "bias": ("float32", "C"),
    "table": ("float32", "DL"),
    **dict.fromkeys(("levels", "byte", "place", "middle"), ("int32", "D")),
    "toll": ("float64", ""),
}
_ROWS_AT_ONCE = 256


def features(state: Mapping[str, Tensor]) -> Codec:
    """Return the codec of a fitted state.

    Args:
        state: weight (C, D) and bias (C,) float32 of the last layer; table (D, L) float32, the values of
            each feature's digits, ascending; levels, byte and place (D,) int32; and what `shaping` needs:
            middle (D,) int32, toll () float64 in nats.
    """
    on_device = cache(lambda device: {name: values.to(device) for name, values in state.items()})
    # Read here: on a device it would have to be waited for.
    toll = float(state["toll"])
    shaping_on = cache(lambda device: Shaping.of(on_device(device), toll))
    width = int(state["byte"].max()) + 1

    def encode(output: TeacherOutput) -> Arrays:
        device = output.logits.device
        chunks = range(0, len(output.logits), _ROWS_AT_ONCE)
        digits = [shaping_on(device).digits(output[row : row + _ROWS_AT_ONCE]) for row in chunks]
        return {"codes": _pack(torch.cat(digits), on_device(device), width)}

    def values(arrays: Mapping[str, Tensor]) -> Tensor:
        kept = on_device(arrays["codes"].device)
        return kept["table"].T.gather(0, _unpack(arrays["codes"], kept))

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        kept = on_device(arrays["codes"].device)
        return relative(F.linear(values(arrays), kept["weight"], kept["bias"]))

    return Codec(
        name=NAME,
        version=1,
        arrays={"codes": ArraySpec("uint8", (width,), column_major=True, level=16)},
        encode=encode,
        decode=decode,
        state=state,
        features=FeatureDecoder(len(state["table"]), values),
    )


def require_state(state: Mapping[str, Tensor], n_classes: int) -> None:
    """Refuse a state that cannot come from fitting, e.g. of a store that somebody made up.

    Args:
        state: what a store keeps once.
        n_classes: C.

    Raises:
        ValueError: an array is missing, of another shape, or has values that decoding cannot use.
    """
    if set(state) != set(STATE):
        raise ValueError(f"it has {quoted(sorted(state))}, expected {', '.join(STATE)}")
    sizes = {"C": n_classes, "D": state["table"].shape[0], "L": state["table"].shape[-1]}
    for name, (dtype, axes) in STATE.items():
        shape = tuple(sizes[axis] for axis in axes)
        if state[name].shape != shape or state[name].dtype != getattr(torch, dtype):
            raise ValueError(
                f"{name} is {state[name].dtype} {tuple(state[name].shape)}, not {dtype} {shape}"
            )
    levels, byte, place, middle = (state[name] for name in ("levels", "byte", "place", "middle"))
    floats = (state[name] for name in ("weight", "bias", "table", "toll"))
    for problem, holds in {
        "values are not finite": all(bool(values.isfinite().all()) for values in floats),
        "levels are out of range": _within(levels, 1, sizes["L"]),
        "bytes are out of range": _within(byte, 0, sizes["D"] - 1),
        "places are out of range": _within(place, 1, 255),
        "middles are out of range": _within(middle, 0, sizes["L"] - 1),
    }.items():
        if not holds:
            raise ValueError(problem)


def _within(values: Tensor, low: int, high: int) -> bool:
    return bool(((low <= values) & (values <= high)).all())


def _pack(digits_BD: Tensor, state: Mapping[str, Tensor], width: int) -> Tensor:
    codes = torch.zeros(len(digits_BD), width, dtype=torch.int32, device=digits_BD.device)
    return codes.index_add_(1, state["byte"], digits_BD.int() * state["place"]).to(torch.uint8)


def _unpack(codes_BN: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    digits: Tensor = codes_BN.int()[:, state["byte"]] // state["place"] % state["levels"]
    return digits.long()
