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
digit up or down that lowers J most, if one does. Sums are in float64, so that devices agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.codecs.codec import TeacherOutput

_LIKELIEST = 32
_HIGH_TEMPERATURE = 0.5
_SWEEPS, _BLOCKS = 10, 4


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
    """

    rows: Tensor
    gram: Tensor
    table: Tensor
    levels: Tensor
    middle: Tensor
    toll: float

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Shaping:
        """Prepare the search."""
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
            toll=float(state["toll"]),
        )

    def digits(self, output: TeacherOutput) -> Tensor:
        """Return the digits (B, D) int64 of a batch."""
        search = _Search(self, output.require_features().double(), output.logits.double())
        blocks = torch.arange(len(self.table), device=self.table.device).tensor_split(_BLOCKS)
        for _ in range(_SWEEPS):
            for block in blocks:
                if len(block):
                    search.step(slice(int(block[0]), int(block[-1]) + 1))
        return search.digits

    def nearest(self, features_BD: Tensor) -> Tensor:
        """Return the digits (B, D) int64 whose values are nearest."""
        # Beyond the last digit the midpoint is infinite, which no feature exceeds.
        midpoints = (self.table[:, 1:] + self.table[:, :-1]) / 2
        midpoints = midpoints.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return torch.searchsorted(midpoints, features_BD.T.contiguous()).T.contiguous()


class _Search:
    """Digits of a batch on their way down."""

    def __init__(self, shaping: Shaping, features_BD: Tensor, logits_BC: Tensor) -> None:
        self._s = shaping
        kept = min(_LIKELIEST, logits_BC.shape[1])
        self._p_BK, likeliest = torch.softmax(logits_BC, 1).topk(kept, 1)
        self._rho_B1 = 1 - self._p_BK.sum(1, keepdim=True) + _HIGH_TEMPERATURE
        self._w_BKD = shaping.rows[likeliest]
        self.digits = shaping.nearest(features_BD)
        error = shaping.table.T.gather(0, self.digits) - features_BD
        # Of the likeliest logits, and of the gradient of the second term.
        self._error_BK = torch.bmm(self._w_BKD, error[:, :, None])[:, :, 0]
        self._gradient_BD = self._rho_B1 * (error @ shaping.gram)
        self._curvature_BD = self._curvature()

    def _curvature(self) -> Tensor:
        p = self._p_BK[:, None]
        mean = torch.bmm(p, self._w_BKD)[:, 0]
        return (
            torch.bmm(p, self._w_BKD.square())[:, 0]
            - mean.square()
            + self._rho_B1 * self._s.gram.diagonal()
        )

    def step(self, block: slice) -> None:
        """Take the best step of one digit among a block of features, in each row that has one."""
        p, s = self._p_BK, self._s
        residual = p * (self._error_BK - (p * self._error_BK).sum(1, keepdim=True))
        gradient = (
            torch.bmm(residual[:, None], self._w_BKD[:, :, block])[:, 0] + self._gradient_BD[:, block]
        )
        gains, moves = zip(*(self._gain(gradient, block, up) for up in (1, -1)), strict=True)
        gain, choice = torch.cat(gains, 1).max(1)
        row = torch.arange(len(gain), device=gain.device)
        width = gradient.shape[1]
        feature, direction = block.start + choice % width, 1 - 2 * (choice // width)
        taken = gain > 0
        move = torch.where(taken, torch.cat(moves, 1)[row, choice], 0.0)
        self.digits[row, feature] += torch.where(taken, direction, 0)
        self._error_BK += move[:, None] * self._w_BKD[row, :, feature]
        self._gradient_BD += move[:, None] * self._rho_B1 * s.gram[feature]

    def _gain(self, gradient: Tensor, block: slice, direction: int) -> tuple[Tensor, Tensor]:
        """Return how much J falls with one digit up or down, and by how much a value moves."""
        s, now = self._s, self.digits[:, block]
        then = now + direction
        possible = (then >= 0) & (then < s.levels[block])
        then = torch.where(possible, then, now)
        table, middle = s.table[block].T, s.middle[block]
        move = table.gather(0, then) - table.gather(0, now)
        saved = s.toll * ((now - middle).abs() - (then - middle).abs())
        gain = saved - (gradient + 0.5 * self._curvature_BD[:, block] * move) * move
        return torch.where(possible, gain, -torch.inf), move
