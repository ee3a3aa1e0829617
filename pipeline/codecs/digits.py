"""`digits`: outputs without a last layer, e.g. embeddings, each quantised on a grid of its own.

A sample keeps a digit v_j per output j; the store keeps a table with the values of each output's digits:

    byte, place -> v_j = codes[byte_j] // place_j mod levels_j,    output_j = table[j, v_j]

The format of a digit is that of `features.py`, which imports it from here: two or more digits of few levels
share a byte, and bytes lie column by column. Here every output counts on its own, so the best digit of one
does not depend on the others. It lowers

    1/2 (metric_j error_j)^2 + toll * |digit_j - middle_j|

with `metric` from the task's measures: one over the root of `scales`, or 1. The toll keeps digits near the
pilot's median, which compresses. `fitting.py` chooses the step from an error budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from pipeline.codecs.base import Arrays, ArraySpec, Codec, FeatureDecoder, TeacherOutput
from pipeline.codecs.rule import Rule
from pipeline.core.errors import quoted

NAME = "digits"
# dtype and axes of arrays that `features` has, too: D values, L digits.
GRID: Mapping[str, tuple[str, str]] = {
    "table": ("float32", "DL"),
    **dict.fromkeys(("levels", "byte", "place", "middle"), ("int32", "D")),
    "toll": ("float64", ""),
}
STATE: Mapping[str, tuple[str, str]] = {"metric": ("float32", "D"), **GRID}


def digits(state: Mapping[str, Tensor]) -> Codec:
    """Return the codec of a fitted state; outputs are features, too, e.g. for losses that compare these.

    Args:
        state: metric (C,) float32; table (C, L) float32, the values of each output's digits, ascending;
            levels, byte, place and middle (C,) int32; toll () float64.
    """
    on_device = cache(lambda device: {name: values.to(device) for name, values in state.items()})
    width = int(state["byte"].max()) + 1

    def encode(output: TeacherOutput, _: Rule) -> Arrays:
        kept = on_device(output.logits.device)
        return {"codes": pack_digits(cheapest(kept, output.logits.double()), kept, width)}

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        return decode_digits(arrays["codes"], on_device(arrays["codes"].device))

    return Codec(
        name=NAME,
        version=1,
        arrays={"codes": ArraySpec("uint8", (width,), column_major=True, level=16)},
        encode=encode,
        decode=decode,
        state=state,
        features=FeatureDecoder(len(state["table"]), decode),
    )


def cheapest(state: Mapping[str, Tensor], outputs_BC: Tensor) -> Tensor:
    """Return the digits (B, C) int64 of lowest cost: the nearest, or its neighbour towards the middle.

    A digit further on is never cheaper: its error grows as a square, the saved toll in proportion.

    Args:
        state: of the codec, on the device of the outputs.
        outputs_BC: float64.
    """
    table, middle = ascending(state), state["middle"].long()
    near = nearest(table, outputs_BC)
    toward = near + torch.sign(middle - near)
    saved = state["toll"] * ((near - middle).abs() - (toward - middle).abs())
    # (B, C) squared errors of both, in units of the metric.
    errors = [(table.T.gather(0, digit) - outputs_BC).square() for digit in (near, toward)]
    weight = state["metric"].double().square() / 2
    return torch.where(weight * (errors[1] - errors[0]) < saved, toward, near)


def ascending(state: Mapping[str, Tensor]) -> Tensor:
    """Return the table (D, L) float64, +inf beyond the last digit of each feature."""
    digit = torch.arange(state["table"].shape[1], device=state["table"].device)
    return state["table"].double().masked_fill(digit >= state["levels"][:, None], torch.inf)


def nearest(table_DL: Tensor, values_BD: Tensor) -> Tensor:
    """Return the digits (B, D) int64 whose values in an `ascending` table are nearest."""
    # (D, L - 1). Beyond the last digit the midpoint is infinite, which no value exceeds.
    midpoints = (table_DL[:, 1:] + table_DL[:, :-1]) / 2
    midpoints = midpoints.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return torch.searchsorted(midpoints, values_BD.T.contiguous()).T.contiguous()


# e.g. levels [16, 6, 16, 6, 256]: largest alphabets first, two of 16 levels or three of 6 per byte:
#     byte = [1, 2, 1, 2, 0], place = [1, 1, 16, 6, 1]
#     digits [3, 2, 5, 1, 200] -> codes [200, 3 + 16 * 5, 2 + 6 * 1] = [200, 83, 8]
#     digit 2 back: codes[1] // 16 % 16 = 5
# A feature with one level has digit 0 and place 1: it adds nothing to byte 0.


def pack_digits(digits_BD: Tensor, state: Mapping[str, Tensor], width: int) -> Tensor:
    """Return codes (B, width) uint8 from digits (B, D)."""
    # Addition never carries into a neighbour: the places of a byte are powers of its alphabet.
    codes = torch.zeros(len(digits_BD), width, dtype=torch.int32, device=digits_BD.device)
    return codes.index_add_(1, state["byte"], digits_BD.int() * state["place"]).to(torch.uint8)


def decode_digits(codes_BN: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return the values (B, D) float32 of codes that `pack_digits` made."""
    digit = codes_BN.int()[:, state["byte"]] // state["place"] % state["levels"]
    return state["table"].T.gather(0, digit.long())


def require_state(state: Mapping[str, Tensor], n_classes: int) -> None:
    """Refuse a state that cannot come from fitting, e.g. from a forged store.

    Raises:
        ValueError: an array is missing, or its shape, dtype or values cannot come from fitting.
    """
    require_fitted(state, STATE, {"D": n_classes})


def require_fitted(
    state: Mapping[str, Tensor], forms: Mapping[str, tuple[str, str]], sizes: Mapping[str, int]
) -> None:
    """Refuse arrays that cannot be a fitted state.

    Args:
        state: the arrays that a store keeps once.
        forms: name -> dtype and axes of each array.
        sizes: length of known axes; D and L are those of the table otherwise.

    Raises:
        ValueError: an array is missing, or its shape, dtype or values cannot come from fitting.
    """
    if set(state) != set(forms):
        raise ValueError(f"it has {quoted(sorted(state))}, expected {', '.join(forms)}")
    sizes = {"D": state["table"].shape[0], "L": state["table"].shape[-1], **sizes}
    for name, (dtype, axes) in forms.items():
        shape = tuple(sizes[axis] for axis in axes)
        if state[name].shape != shape or state[name].dtype != getattr(torch, dtype):
            raise ValueError(
                f"{name} is {state[name].dtype} {tuple(state[name].shape)}, not {dtype} {shape}"
            )
    levels, byte, place, middle = (state[name] for name in ("levels", "byte", "place", "middle"))
    floats = (values for values in state.values() if values.is_floating_point())
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
