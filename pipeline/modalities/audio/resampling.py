"""Resampling by a ratio of integers: exact, whatever the order of summation.

A polyphase filter maps every `down` samples to `up` samples, which is one matrix product per block. All
values are integers, and all sums are below 2^53, so float64 holds each exactly, in any order, on any
machine and with any library.

Worked example, 3 to 2 samples (up 2, down 3), taps from -W + 1 to W around each output:

    block 0: outputs 0 and 1 stand at inputs 0 and 1.5; block 1: at 3 and 4.5
    inputs of block b: 3 b - W + 1 to 3 b + 1 + W, times a matrix (2 W + 1, 2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.modalities.audio.filters import in_fixed_point, lowpass

LOUDEST = (1 << 15) - 1
# Name of the filter in dataset.json; a new number if it changes.
RESAMPLER = "polyphase 1"
MOST_PHASES = 4096
_BITS = 20
ZEROS = 16
_PASSED = 0.92  # share of the lower Nyquist frequency that passes; the rest falls off


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive samples: the first one's index, which may be negative, and their number."""

    first: int
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Resampler:
    """Maps `down` samples to `up` samples; made by `make_resampler`.

    Args:
        up, down: without a common factor.
        reach: W, taps on each side.
        matrix: (down samples and what they reach, up), of integers.
    """

    up: int
    down: int
    reach: int
    matrix: NDArray[np.float64]

    def length(self, count: int) -> int:
        """Return the number of samples that `count` samples become."""
        return -(-count * self.up // self.down)

    def needed(self, span: Span) -> Span:
        """Return the input samples of these output samples: whole blocks."""
        # Outputs 3 to 6 at up 2, down 3 lie in blocks 1 to 3. With W = 27, a block has 55 inputs:
        #   the first input is 3 * 1 - 27 + 1 = -23; 2 * 3 + 55 = 61 of them reach all outputs.
        first, last = span.first // self.up, (span.first + span.count - 1) // self.up
        return Span(first * self.down - self.reach + 1, (last - first) * self.down + self.matrix.shape[0])

    def apply(self, samples: NDArray[np.int16], span: Span) -> NDArray[np.int16]:
        """Resample.

        Args:
            samples: (..., n) int16, the samples of `needed(span)`, silence where a clip has none.
            span: the outputs.

        Returns:
            (..., span.count) int16, rounded and limited.
        """
        blocks = np.lib.stride_tricks.sliding_window_view(samples, self.matrix.shape[0], axis=-1)
        # (..., blocks, inputs of a block) @ (inputs of a block, up)
        sums = blocks[..., :: self.down, :].astype(np.float64) @ self.matrix
        # (..., blocks, up) -> (..., blocks * up). Blocks 1 to 3 hold outputs 2 to 7, so 3 to 6 start at 1.
        flat = sums.reshape(*samples.shape[:-1], -1)
        start = span.first % self.up
        return rounded(flat[..., start : start + span.count], _BITS)


@lru_cache(maxsize=64)
def make_resampler(up: int, down: int, zeros: int = ZEROS) -> Resampler:
    """Return the resampler of a ratio, e.g. up 160, down 441 from 44,100 to 16,000 Hz.

    Args:
        up, down: the ratio.
        zeros: zero crossings of the filter on each side; more cut off more sharply.

    Raises:
        ValueError: more than `MOST_PHASES` phases.
    """
    common = math.gcd(up, down)
    up, down = up // common, down // common
    if up > MOST_PHASES or down > MOST_PHASES:
        raise ValueError(f"a ratio of {up} to {down}; expected at most {MOST_PHASES} each")
    cutoff = _PASSED * min(1.0, up / down)
    reach = math.ceil(zeros / cutoff)
    phases = np.arange(up) * down  # places of a block's outputs, in `up`ths of an input sample
    # At up 2, down 3: phases [0, 3], so output 0 stands at input 0 and output 1 at input 1 1/2. The filter
    # of output 1 is half a sample late (3 % 2 / 2), and its column begins one row down (3 // 2).
    taps = np.arange(-reach + 1, reach + 1)
    distances = taps - (phases % up)[:, None] / up
    filters = in_fixed_point(lowpass(distances, cutoff, float(reach)), _BITS)
    matrix = np.zeros((2 * reach + int(phases[-1]) // up, up))
    for column, (phase, coefficients) in enumerate(zip(phases.tolist(), filters, strict=True)):
        start = phase // up
        matrix[start : start + 2 * reach, column] = coefficients
    return Resampler(up, down, reach, matrix)


def resample(samples: NDArray[np.int16], rate: int, target: int) -> NDArray[np.int16]:
    """Resample a clip (n,) int16 to another number of samples per second.

    >>> resample(np.full(8, 900, np.int16), 16_000, 16_000).tolist()
    [900, 900, 900, 900, 900, 900, 900, 900]
    """
    if rate == target:
        return samples
    resampler = make_resampler(target, rate)
    span = Span(0, resampler.length(len(samples)))
    return resampler.apply(window(samples, resampler.needed(span)), span)


def window(samples: NDArray[np.int16], span: Span) -> NDArray[np.int16]:
    """Return a span of a clip (n,), with silence before and after it: (span.count,).

    >>> window(np.array([5, 6, 7], np.int16), Span(-1, 3)).tolist()
    [0, 5, 6]
    """
    out = np.zeros(span.count, np.int16)
    first, last = max(span.first, 0), min(span.first + span.count, len(samples))
    if first < last:
        out[first - span.first : last - span.first] = samples[first:last]
    return out


def rounded(sums: NDArray[np.float64], bits: int) -> NDArray[np.int16]:
    """Divide sums by 2^bits, round halves up, and limit them to int16 without its lowest value.

    Overwrites the sums.
    """
    sums += 1 << (bits - 1)
    sums *= 0.5**bits
    np.floor(sums, out=sums)
    np.clip(sums, -LOUDEST, LOUDEST, out=sums)
    return sums.astype(np.int16)
