"""Time compared actions in alternation, since machines are shared and noisy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Action = Callable[[], object]


def seconds(action: Action, device: torch.device) -> float:
    """Time an action, device work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest(action: Action, device: torch.device, times: int = 5) -> float:
    """Return the seconds of an action's fastest run, after one warm-up."""
    action()
    return min(seconds(action, device) for _ in range(times))


def alternated(rounds: int, device: torch.device, actions: Mapping[str, Action]) -> dict[str, list[float]]:
    """Return the seconds of each action per round, in alternation."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action, device))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compared(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return ratios of two actions' seconds: of the fastest, of the medians, and per round."""
    return {
        "fastest": min(one) / min(other),
        "of_medians": statistics.median(one) / statistics.median(other),
        **spread([first / second for first, second in zip(one, other, strict=True)]),
    }


def ratio(rounds: int, device: torch.device, one: Action, other: Action) -> dict[str, float]:
    """Time two actions alternately, after one warm-up each; return one / other."""
    one(), other()
    times = alternated(rounds, device, {"one": one, "other": other})
    return compared(times["one"], times["other"])
