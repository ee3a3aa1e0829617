"""Times of two things that are compared: alternated, since machines are shared and noisy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time an action, device work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest(action: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Return the seconds of an action's fastest run, after one that does not count."""
    action()
    return min(seconds(action, device) for _ in range(times))


def ratio(
    rounds: int, device: torch.device, one: Callable[[], object], other: Callable[[], object]
) -> dict[str, float]:
    """Time two actions alternately; return one / other: fastest, of the medians, and over the rounds."""
    one(), other()
    times = [(seconds(one, device), seconds(other, device)) for _ in range(rounds)]
    ratios = [first / second for first, second in times]
    sides = list(zip(*times, strict=True))
    return {
        "fastest": min(sides[0]) / min(sides[1]),
        "of_medians": statistics.median(sides[0]) / statistics.median(sides[1]),
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }
