"""Fit `features` and `digits` to a teacher: values of digits, digits that share a byte, step sizes.

The step of feature j is a sqrt(12 / D) / spread_j. A rounding error then costs the same in every feature,
and `a` is the root mean square error of an output if all features were rounded. With w_j the feature's
column of the last layer, its spread is std(w_j) for a softmax, which ignores the mean, and the root mean
square of w_j for absolute outputs. Without a last layer it is the task's metric of an output, and `a` is
the length of the error of a row.

A feature gets the smallest alphabet that holds 99 % of the pilot. Outer digits are spaced three times
wider, so that they serve rows outside. A search finds the `a` whose divergence meets the budget on the
pilot rows that were not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.codecs.base import Codec, TeacherOutput
from pipeline.codecs.dense import codes_per_byte
from pipeline.codecs.digits import ascending, digits, nearest
from pipeline.codecs.features import Shaping, features
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import Rule

# Alphabets that fill a byte well -> number of their digits that are spaced wider, at the ends. A feature
# that the pilot never moves has two digits. A feature that the last layer does not use has one, digit 0.
_WIDE_DIGITS = {2: 0, 3: 1, 4: 1, 6: 1, 16: 4, 256: 32}
_WIDER = 3
_OUTSIDE = 0.01
_FLOOR_SHARE = 0.02
_UNUSED = 1e-9
_TOLL = 0.06
_PILOT_ROWS = 1024
# With fewer rows, the same rows are fitted to and measured on.
_ROWS_TO_SPLIT = 128
_FIRST_TRIAL, _TRIALS = 0.2, 8
_AIM, _NEAR_ENOUGH = 0.88, 0.05
_LEAST_KL = 1e-12


def fit_features(pilot: TeacherOutput, head: nn.Linear, budget: float, rule: Rule) -> Codec:
    """Return the coarsest `features` codec that meets a budget on the pilot.

    Args:
        pilot: logits and features of some samples.
        head: the teacher's last layer.
        budget: the largest mean of each of the rule's divergences.
        rule: of the task.
    """
    absolute = rule.measures.is_absolute

    def fit(seen: TeacherOutput, fineness: float) -> Codec:
        return features(fit_state(seen, head, fineness, absolute=absolute), absolute=absolute)

    # Logits of a softmax or of sigmoids are in nats, other outputs in any unit.
    deviation = float(pilot.logits.double().std(0, correction=0).square().mean().sqrt())
    unit = deviation if rule.measures.link == "identity" and deviation else 1.0
    return _coarsest(fit, pilot, budget, rule, first=_FIRST_TRIAL * unit)


def fit_digits(pilot: TeacherOutput, budget: float, rule: Rule) -> Codec:
    """Return the coarsest `digits` codec that meets a budget on the pilot; see `fit_features`."""

    def fit(seen: TeacherOutput, fineness: float) -> Codec:
        return digits(_digits_state(seen, _metric(rule, pilot), fineness))

    spread = _metric(rule, pilot) * pilot.logits.double().std(0, correction=0)
    return _coarsest(fit, pilot, budget, rule, first=_FIRST_TRIAL * (float(spread.norm()) or 1.0))


def _metric(rule: Rule, pilot: TeacherOutput) -> Tensor:
    """Return the weight (C,) float64 of an error of each output, from the rule's scales."""
    if not rule.measures.scales:
        return torch.ones_like(pilot.logits[0], dtype=torch.float64)
    scales = torch.tensor(rule.measures.scales, dtype=torch.float64, device=pilot.logits.device)
    return scales.rsqrt()


def _coarsest(
    fit: Callable[[TeacherOutput, float], Codec],
    pilot: TeacherOutput,
    budget: float,
    rule: Rule,
    *,
    first: float,
) -> Codec:
    """Search `a`, from a first trial: fit to some rows of the pilot, and measure on the others."""
    # Every s-th row, with s = ceil(n / 1024): at most 1024 rows from the whole pilot.
    some = pilot[:: -(-len(pilot.logits) // _PILOT_ROWS)]
    enough = len(some.logits) >= _ROWS_TO_SPLIT
    seen, unseen = (some[::2], some[1::2]) if enough else (some, some)
    trials: list[tuple[float, Codec]] = []
    # log a -> log divergence
    known: dict[float, float] = {}
    fineness = first
    for _ in range(_TRIALS):
        codec = fit(seen, fineness)
        worst = _worst(codec, unseen, rule)
        trials.append((worst, codec))
        known[math.log(fineness)] = math.log(max(worst, _LEAST_KL))
        if abs(worst / budget - _AIM) < _NEAR_ENOUGH:
            break
        fineness = math.exp(_next_trial(known, math.log(_AIM * budget)))
    kept = [trial for trial in trials if trial[0] <= budget]
    best = max(kept, key=_divergence) if kept else min(trials, key=_divergence)
    return best[1]


def _divergence(trial: tuple[float, Codec]) -> float:
    return trial[0]


def fit_state(
    pilot: TeacherOutput, head: nn.Linear, fineness: float, *, absolute: bool = False
) -> dict[str, Tensor]:
    """Return the state of a `features` codec with one step size.

    Args:
        pilot: logits and features (n, D) of some samples.
        head: the teacher's last layer.
        fineness: `a` of the module's docstring, in logits, above 0.
        absolute: whether outputs are absolute, not up to a constant per row.
    """
    features_ND, weight = pilot.require_features().double(), head.weight.detach().float().clone()
    bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias.detach().float().clone()
    columns = weight.double()
    spread = columns.square().mean(0).sqrt() if absolute else columns.std(0, correction=0)
    state = {"weight": weight, "bias": bias, **_grid(features_ND, spread, fineness)}
    shaping = Shaping.of(state, float(state["toll"]), absolute=absolute)
    state["middle"] = shaping.nearest(features_ND).median(0).values.int()
    return {name: values.cpu() for name, values in state.items()}


def _digits_state(pilot: TeacherOutput, metric_C: Tensor, fineness: float) -> dict[str, Tensor]:
    """Return the state of a `digits` codec with one step size."""
    outputs_NC = pilot.logits.double()
    # An output that never changes needs one digit.
    moves = outputs_NC.amax(0) > outputs_NC.amin(0)
    state = {
        "metric": metric_C.float(),
        **_grid(outputs_NC, torch.where(moves, metric_C, 0.0), fineness),
    }
    state["middle"] = nearest(ascending(state), outputs_NC).median(0).values.int()
    return {name: values.cpu() for name, values in state.items()}


def _grid(features_ND: Tensor, spread_D: Tensor, fineness: float) -> dict[str, Tensor]:
    """Return the arrays that both codecs keep, with a middle of 0."""
    table, levels = _tables(features_ND, spread_D, fineness)
    byte, place = _places(levels)
    toll = torch.tensor(_TOLL * _square_step(fineness, len(levels)), dtype=torch.float64)
    state = {"table": table.float(), "levels": levels.int(), "byte": byte.int(), "place": place.int()}
    return {**state, "middle": torch.zeros_like(levels), "toll": toll}


def _square_step(fineness: float, width: int) -> float:
    """Return the squared step in units of its column: a uniform error has a variance of a twelfth."""
    return 12 * fineness**2 / width


def _tables(features_ND: Tensor, spread: Tensor, fineness: float) -> tuple[Tensor, Tensor]:
    """Return the values (D, L) of each feature's digits and their number (D,), given its spread (D,)."""
    used = spread > _UNUSED * spread.max()
    step = math.sqrt(_square_step(fineness, len(spread))) / torch.where(used, spread, 1.0)
    lowest = features_ND.amin(0)
    # A share of the samples at the minimum is a floor, e.g. of a ReLU: no value lies below it.
    floored = (features_ND == lowest).double().mean(0) > _FLOOR_SHARE
    origin = torch.where(floored, lowest, features_ND.mean(0))
    rounded = ((features_ND - origin) / step).round()
    middle = rounded.median(0).values
    most = max(_WIDE_DIGITS)
    digit = torch.arange(most, device=step.device)
    table = origin[:, None].repeat(1, most)
    levels = torch.ones_like(lowest, dtype=torch.long)
    # Smallest alphabet first; a feature keeps the first one that fits. In units of its step, digits of 16
    # levels with 4 wide ones are
    #     median 0: -11, -8, -5, -4 ... 5, 6, 9, 12    (first -5, last 6, two wide ones on each side)
    #     floor:    0, 1 ... 11, 14, 17, 20, 23        (first 0, last 11, all wide ones above)
    for count, wide in _WIDE_DIGITS.items():
        below = torch.where(floored, 0, wide // 2)
        width = count - below - torch.where(floored, wide, wide // 2)
        first = torch.where(floored, 0, middle - (width - 1).div(2, rounding_mode="floor"))
        last = first + width - 1
        outside = ((rounded < first) | (rounded > last)).double().mean(0)
        fits = (outside <= _OUTSIDE) & (floored | (count > 2)) | (count == most)
        chosen = used & (levels == 1) & fits
        value = (first - below)[:, None] + digit
        beyond = (value - last[:, None]).clamp(min=0) - (first[:, None] - value).clamp(min=0)
        spaced = origin[:, None] + (value + (_WIDER - 1) * beyond) * step[:, None]
        table = torch.where(chosen[:, None] & (digit < count), spaced, table)
        levels = torch.where(chosen, count, levels)
    return table, levels


def _places(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each digit's byte (D,) and its place (D,) in that byte; largest alphabets first."""
    byte, place, end = torch.zeros_like(levels), torch.ones_like(levels), 0
    for count in sorted(_WIDE_DIGITS, reverse=True):
        members = torch.nonzero(levels == count)[:, 0]
        order, shared = torch.arange(len(members), device=levels.device), codes_per_byte(count)
        byte[members] = end + order // shared
        place[members] = count ** (order % shared)
        end += -(-len(members) // shared)
    return byte, place


def _worst(codec: Codec, pilot: TeacherOutput, rule: Rule) -> float:
    return Fidelity.measure(rule, pilot.logits, codec.decode(codec.encode(pilot, rule))).worst


def _next_trial(known: dict[float, float], target: float) -> float:
    """Return the logarithm of the next `a`: interpolate, or assume that divergence grows as `a` squared."""
    points = sorted(known.items())
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 <= target <= y1:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    # In logarithms, a square is a slope of 2.
    x, y = min(points, key=lambda point: abs(point[1] - target))
    return x + (target - y) / 2
