"""Choosing the digits of a row of features so that the softmax made of them is near the teacher's.

With e the error of a row's features, w_k the row of the centred last layer that belongs to class k, p the
teacher's probabilities and T the classes that are likeliest, the search lowers

    J = 1/2 [sum_{k in T} p_k (w_k e)^2 - (sum_{k in T} p_k w_k e)^2] + 1/2 rho |W e|^2 / C
        + toll * sum_j |digit_j - middle_j|

with rho = 1 - sum_{k in T} p_k + 1/2. To second order the bracket is KL(p || decoded) if all other classes
were one; the second term stands for these and for higher temperatures, where classes are nearly alike; the
toll keeps digits near the pilot's median, which compresses. Every feature is a variable, and few directions
matter: a thousand small errors are made to cancel in those, which rounding to the nearest cannot.

It starts from the nearest digits. In each sweep, each of a few blocks of features takes the one step of a
digit up or down that lowers J most, if one does. Sums are in float64, so that devices agree, up to steps
that would lower J alike to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.codecs.codec import TeacherOutput

_LIKELIEST = 24
_HIGH_TEMPERATURE = 0.5
_SWEEPS, _BLOCKS = 3, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What the search needs of a fitted state, on one device.

    Args:
        rows: (C, D) float64, the last layer with its classes' mean taken off.
        gram: (D, D) float64, rows' rows / C.
        table: (D, L) float64, value of each digit; +inf where there is none.
        levels: (D,) digits that a feature has.
        middle: (D,) the pilot's median digit.
        toll: of a digit's distance from it.
        up_down: (2,) int64, 1 and -1: the ways that a digit can go.
    """

    rows: Tensor
    gram: Tensor
    table: Tensor
    levels: Tensor
    middle: Tensor
    toll: float
    up_down: Tensor

    @classmethod
    def of(cls, state: Mapping[str, Tensor], toll: float) -> Shaping:
        """Prepare the search, on the device of a fitted state."""
        weight = state["weight"].double()
        rows = weight - weight.mean(0)
        digit = torch.arange(state["table"].shape[1], device=weight.device)
        absent = digit >= state["levels"][:, None]
        return cls(
            rows=rows,
            gram=rows.T @ rows / len(rows),
            table=state["table"].double().masked_fill(absent, torch.inf),
            levels=state["levels"].long(),
            middle=state["middle"].long(),
            toll=toll,
            up_down=torch.tensor([1, -1], device=weight.device),
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
        # Beyond the last digit the midpoint is infinite, which no feature exceeds.
        midpoints = (self.table[:, 1:] + self.table[:, :-1]) / 2
        midpoints = midpoints.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return torch.searchsorted(midpoints, features_BD.T.contiguous()).T.contiguous()


class _Search:
    """Digits of a batch on their way down.

    For each feature and direction, up and down, it holds by how much the value would move and what the toll
    would be less; a step changes them for one feature a row.
    """

    def __init__(self, shaping: Shaping, features_BD: Tensor, logits_BC: Tensor) -> None:
        self._s = shaping
        kept = min(_LIKELIEST, logits_BC.shape[1])
        self._p_BK, likeliest = torch.softmax(logits_BC, 1).topk(kept, 1)
        self._rho_B1 = 1 - self._p_BK.sum(1, keepdim=True) + _HIGH_TEMPERATURE
        # Whole rows at once: indexing would copy element by element.
        self._w_BKD = shaping.rows.index_select(0, likeliest.flatten()).view(*likeliest.shape, -1)
        self.digits = shaping.nearest(features_BD)
        error = shaping.table.T.gather(0, self.digits) - features_BD
        # Of the likeliest logits, and of the gradient of the second term.
        self._error_BK = torch.bmm(self._w_BKD, error[:, :, None])[:, :, 0]
        self._gradient_BD = self._rho_B1 * (error @ shaping.gram)
        self._half_curvature_BD = self._curvature() / 2
        every = torch.arange(features_BD.shape[1], device=features_BD.device).expand_as(self.digits)
        self._moves, self._saved = self._ways(self.digits, every)

    def _curvature(self) -> Tensor:
        p = self._p_BK[:, None]
        mean = torch.bmm(p, self._w_BKD)[:, 0]
        likely = torch.bmm(p, self._w_BKD * self._w_BKD)[:, 0] - mean * mean
        return likely + self._rho_B1 * self._s.gram.diagonal()

    def _ways(self, digits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return moves and saved tolls of some features' digits, (2, ...) each: up, down."""
        s = self._s
        then = digits + s.up_down.view(2, *(1 for _ in digits.shape))
        possible = (then >= 0) & (then < s.levels[features])
        then = torch.where(possible, then, digits)
        distance = (digits - s.middle[features]).abs() - (then - s.middle[features]).abs()
        saved = torch.where(possible, s.toll * distance, -torch.inf)
        return s.table[features, then] - s.table[features, digits], saved

    def step(self, block: slice) -> None:
        """Take the best step of one digit among a block of features, in each row that has one."""
        p = self._p_BK
        residual = p * (self._error_BK - (p * self._error_BK).sum(1, keepdim=True))
        likely = torch.bmm(residual[:, None], self._w_BKD[:, :, block])[:, 0]
        gradient = likely + self._gradient_BD[:, block]
        moves = self._moves[:, :, block]
        gains = self._saved[:, :, block] - (gradient + self._half_curvature_BD[:, block] * moves) * moves
        gain, choice = torch.cat(gains.unbind(), 1).max(1)
        down, feature = choice // gradient.shape[1], block.start + choice % gradient.shape[1]
        self._take(feature, down, gain > 0)

    def _take(self, feature_B: Tensor, down_B: Tensor, taken_B: Tensor) -> None:
        row = torch.arange(len(feature_B), device=feature_B.device)
        move = torch.where(taken_B, self._moves[down_B, row, feature_B], 0.0)[:, None]
        self.digits[row, feature_B] += torch.where(taken_B, 1 - 2 * down_B, 0)
        self._error_BK += move * self._w_BKD[row, :, feature_B]
        self._gradient_BD += move * self._rho_B1 * self._s.gram[feature_B]
        moves, saved = self._ways(self.digits[row, feature_B], feature_B)
        self._moves[:, row, feature_B], self._saved[:, row, feature_B] = moves, saved
