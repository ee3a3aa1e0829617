"""`features`: the teacher's penultimate activations, quantised for the outputs that they produce.

The teacher's last layer maps features x (D) to logits W x + b (C). A sample keeps a digit v_j per feature.
The store keeps W, b and a table with the values of each feature's digits once:

    byte, place -> v_j = codes[byte_j] // place_j mod levels_j
    x_j = table[j, v_j],    logits = W x + b

Decoding is a matmul, and gives all classes at any temperature; the bytes do not depend on the number of
classes. Two or more digits of few levels share a byte. Bytes lie column by column, because Zstandard's
codes then fit them better. Measured here, level 16 takes a tenth less than level 1, and 0.2 ms per row in
the writer's threads.

The digits are not the nearest ones but the jointly best ones for a softmax; the comment below explains the
search. For absolute outputs, e.g. of sigmoids, it lowers the squared error of all outputs alike.
`fitting.py` chooses the tables' step size on the pilot, from a budget of divergence. Bytes before
compression: about D / 3 at a mean KL of 1e-3. Error: as budgeted on the pilot; each dump measures its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs.base import Arrays, ArraySpec, Codec, FeatureDecoder, TeacherOutput, relative
from pipeline.codecs.digits import GRID, ascending, decode_digits, nearest, pack_digits, require_fitted
from pipeline.codecs.rule import Rule

# Choose the digits of a row of features so that their softmax is near the teacher's.
#
# Let e be the error of a row's features, w_k the row of the centred last layer for class k, p the teacher's
# probabilities and T the likeliest classes. The search lowers
#
#     J = 1/2 [sum_{k in T} p_k (w_k e)^2 - (sum_{k in T} p_k w_k e)^2] + 1/2 rho |W e|^2 / C
#         + toll * sum_j |digit_j - middle_j|
#
# with rho = 1 - sum_{k in T} p_k + 1/2. To second order the bracket is KL(p || decoded) with all other
# classes merged into one. The second term stands for these classes and for higher temperatures, at which
# classes are nearly alike. The toll keeps digits near the pilot's median, which compresses.
#
# Every feature is a variable, but few directions matter. In these directions a thousand small errors can
# cancel; rounding each feature to the nearest value leaves them.
#
# Absolute outputs have no constant to ignore: W is not centred, T is empty and rho is 1.
#
# The search starts from the nearest digits. In each sweep, each of a few blocks of features moves the one
# digit up or down that lowers J most, if any does: at most _SWEEPS * _BLOCKS = 48 moves per row. Sums are
# in float64, so that devices agree, except on moves that lower J equally to the last bit.


_LIKELIEST = 24
_HIGH_TEMPERATURE = 0.5
_SWEEPS, _BLOCKS = 3, 16
NAME = "features"
# dtype and axes of the arrays that a store keeps once: C classes, D features, L digits.
STATE: Mapping[str, tuple[str, str]] = {
    "weight": ("float32", "CD"),
    "bias": ("float32", "C"),
    **GRID,
}
# Bounds the search's memory: `_w_BKD` takes 256 * 24 * D * 8 bytes, 100 MB for D = 2048.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """The inputs of the search from a fitted state, on one device.

    Args:
        rows: (C, D) float64, the last layer; of a softmax, minus the mean over its classes.
        gram: (D, D) float64, rows^T rows / C.
        table: (D, L) float64, value of each digit; +inf beyond a feature's last digit.
        levels: (D,) number of digits of a feature.
        middle: (D,) the pilot's median digit.
        toll: cost per unit of distance from `middle`.
        up_down: (2,) int64, 1 and -1: the two directions of a digit.
        absolute: whether all outputs count alike, as no softmax says which are likely.
    """

    rows: Tensor
    gram: Tensor
    table: Tensor
    levels: Tensor
    middle: Tensor
    toll: float
    up_down: Tensor
    absolute: bool

    @classmethod
    def of(cls, state: Mapping[str, Tensor], toll: float, *, absolute: bool = False) -> Shaping:
        """Prepare the search on the device of a fitted state."""
        weight = state["weight"].double()
        # A constant over classes is invisible to a softmax, and so is the part of W that adds it.
        rows = weight if absolute else weight - weight.mean(0)
        return cls(
            rows=rows,
            gram=rows.T @ rows / len(rows),
            table=ascending(state),
            levels=state["levels"].long(),
            middle=state["middle"].long(),
            toll=toll,
            up_down=torch.tensor([1, -1], device=weight.device),
            absolute=absolute,
        )

    def digits(self, output: TeacherOutput) -> Tensor:
        """Return the digits (B, D) int64 of a batch."""
        search = _Search(self, output.require_features().double(), output.logits.double())
        ends = [len(self.table) * block // _BLOCKS for block in range(_BLOCKS + 1)]
        for _ in range(_SWEEPS):
            for start, stop in pairwise(ends):
                if start < stop:
                    search.step(slice(start, stop))
        return search.digits

    def nearest(self, features_BD: Tensor) -> Tensor:
        """Return the digits (B, D) int64 whose values are nearest."""
        return nearest(self.table, features_BD)


class _Search:
    """The digits of a batch, lowered step by step.

    For each feature and direction, the search holds the change of the value and the toll that it saves.
    A step updates these for one feature per row, instead of recomputing all D.
    """

    def __init__(self, shaping: Shaping, features_BD: Tensor, logits_BC: Tensor) -> None:
        self._s = shaping
        kept = 0 if shaping.absolute else min(_LIKELIEST, logits_BC.shape[1])
        self._p_BK, likeliest = torch.softmax(logits_BC, 1).topk(kept, 1)
        others_B1 = 1 - self._p_BK.sum(1, keepdim=True)
        self._rho_B1 = others_B1 if shaping.absolute else others_B1 + _HIGH_TEMPERATURE
        # index_select copies whole rows; indexing would copy element by element.
        width = features_BD.shape[1]
        self._w_BKD = shaping.rows.index_select(0, likeliest.flatten()).view(*likeliest.shape, width)
        self.digits = shaping.nearest(features_BD)
        error = shaping.table.T.gather(0, self.digits) - features_BD
        # W_T e (B, K), the error of the likeliest logits, and the gradient (B, D) of the second term.
        self._error_BK = torch.bmm(self._w_BKD, error[:, :, None])[:, :, 0]
        self._gradient_BD = self._rho_B1 * (error @ shaping.gram)
        self._half_curvature_BD = self._curvature() / 2
        every = torch.arange(features_BD.shape[1], device=features_BD.device).expand_as(self.digits)
        # Both (2, B, D): the change of the value, and the saved toll.
        self._moves, self._saved = self._ways(self.digits, every)

    def _curvature(self) -> Tensor:
        # (B, D), the diagonal of J's second derivative: a move m of one feature adds m^2 / 2 times it.
        p = self._p_BK[:, None]
        mean = torch.bmm(p, self._w_BKD)[:, 0]
        likely = torch.bmm(p, self._w_BKD * self._w_BKD)[:, 0] - mean * mean
        return likely + self._rho_B1 * self._s.gram.diagonal()

    def _ways(self, digits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return (2, ...) moves and saved tolls for some features' digits: first up, then down."""
        s = self._s
        then = digits + s.up_down.view(2, *(1 for _ in digits.shape))
        # An impossible direction moves by 0 and saves -inf, so that it never wins.
        possible = (then >= 0) & (then < s.levels[features])
        then = torch.where(possible, then, digits)
        distance = (digits - s.middle[features]).abs() - (then - s.middle[features]).abs()
        saved = torch.where(possible, s.toll * distance, -torch.inf)
        return s.table[features, then] - s.table[features, digits], saved

    def step(self, block: slice) -> None:
        """Move the best digit among a block of b features, in each row that has an improving move."""
        p = self._p_BK
        # Gradient of the bracket in the logits (B, K), then in the block's features (B, b).
        residual = p * (self._error_BK - (p * self._error_BK).sum(1, keepdim=True))
        likely = torch.bmm(residual[:, None], self._w_BKD[:, :, block])[:, 0]
        gradient = likely + self._gradient_BD[:, block]
        moves = self._moves[:, :, block]
        gains = self._saved[:, :, block] - (gradient + self._half_curvature_BD[:, block] * moves) * moves
        # (2, B, b) -> (B, 2 b): columns 0 to b - 1 go up, columns b to 2 b - 1 go down.
        gain, choice = torch.cat(gains.unbind(), 1).max(1)
        down, feature = choice // gradient.shape[1], block.start + choice % gradient.shape[1]
        self._take(feature, down, gain > 0)

    def _take(self, feature_B: Tensor, down_B: Tensor, taken_B: Tensor) -> None:
        row = torch.arange(len(feature_B), device=feature_B.device)
        # Rows without an improving move add 0: no branch, so the device need not be waited for.
        move = torch.where(taken_B, self._moves[down_B, row, feature_B], 0.0)[:, None]
        self.digits[row, feature_B] += torch.where(taken_B, 1 - 2 * down_B, 0)
        self._error_BK += move * self._w_BKD[row, :, feature_B]
        self._gradient_BD += move * self._rho_B1 * self._s.gram[feature_B]
        moves, saved = self._ways(self.digits[row, feature_B], feature_B)
        self._moves[:, row, feature_B], self._saved[:, row, feature_B] = moves, saved


def features(state: Mapping[str, Tensor], *, absolute: bool = False) -> Codec:
    """Return the codec of a fitted state.

    Args:
        state: weight (C, D) and bias (C,) float32 of the last layer; table (D, L) float32, the values of
            each feature's digits, ascending; levels, byte and place (D,) int32; and the inputs of
            `Shaping`: middle (D,) int32, toll () float64 in nats.
        absolute: whether decoded outputs are absolute, not up to a constant per row.
    """
    on_device = cache(lambda device: {name: values.to(device) for name, values in state.items()})
    # Read once, on the host: reading it on a device would wait for that device.
    toll = float(state["toll"])
    shaping_on = cache(lambda device: Shaping.of(on_device(device), toll, absolute=absolute))
    width = int(state["byte"].max()) + 1

    def encode(output: TeacherOutput, _: Rule) -> Arrays:
        device = output.logits.device
        chunks = range(0, len(output.logits), _ROWS_AT_ONCE)
        digits = [shaping_on(device).digits(output[row : row + _ROWS_AT_ONCE]) for row in chunks]
        return {"codes": pack_digits(torch.cat(digits), on_device(device), width)}

    def values(arrays: Mapping[str, Tensor]) -> Tensor:
        kept = on_device(arrays["codes"].device)
        return decode_digits(arrays["codes"], kept)

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        kept = on_device(arrays["codes"].device)
        outputs = F.linear(values(arrays), kept["weight"], kept["bias"])
        return outputs if absolute else relative(outputs)

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
    """Refuse a state that cannot come from fitting, e.g. from a forged store.

    Args:
        state: the arrays that a store keeps once.
        n_classes: C.

    Raises:
        ValueError: an array is missing, or its shape, dtype or values cannot come from fitting.
    """
    require_fitted(state, STATE, {"C": n_classes})
