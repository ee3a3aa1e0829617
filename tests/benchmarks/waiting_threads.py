"""Measure what torch's waiting threads cost, alone and beside busy programs.

    python -m tests.benchmarks.waiting_threads [--busy 8] [--rounds 5] [--steps 40] [--out FILE.json]

A step of a small network of texts with as many threads as processors, each arm in processes of its own,
alternately: with the commands' `GOMP_SPINCOUNT` (`stages/environment.py`) and with the library's default.
Then the same beside BUSY programs that do nothing but count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.files import write_json
from tests.benchmarks.environment import environment
from tests.benchmarks.timing import spread

SPIN = "GOMP_SPINCOUNT"
BUSY = "while True: pass"


def step_seconds(steps: int) -> float:
    """Return the median seconds of a training step in this process."""
    import torch
    from torch.nn import functional as F

    from pipeline.models.architecture import Architecture, build

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    options = {"dim": 32, "blocks": 1}
    network = build(Architecture(name="byte_cnn", num_classes=431, channels=260, options=options))
    texts, labels = torch.randint(1, 256, (64, 40)), torch.randint(0, 431, (64,))
    optimizer, times = torch.optim.AdamW(network.parameters()), []
    for _ in range(steps + 3):
        start = time.perf_counter()
        F.cross_entropy(network(texts), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def measured(steps: int, spin: str | None) -> float:
    """Return the seconds of a step in a new process."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", SPIN))}
    command = [sys.executable, "-m", "tests.benchmarks.waiting_threads", "--step", "--steps", str(steps)]
    given = plain if spin is None else {**plain, SPIN: spin}
    return float(subprocess.run(command, env=given, check=True, stdout=subprocess.PIPE, text=True).stdout)


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Keep processors busy."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--busy", type=int, default=8, help="programs beside it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.step:
        print(step_seconds(given.steps))
        return
    from stages.environment import SHORT_SPIN

    result = {"environment": environment(), "busy": given.busy, "spin": SHORT_SPIN}
    for name, count in (("alone", 0), ("beside", given.busy)):
        arms: dict[str, list[float]] = {"short": [], "default": []}
        with beside(count):
            for _ in range(given.rounds):
                arms["short"].append(measured(given.steps, SHORT_SPIN))
                arms["default"].append(measured(given.steps, None))
        ratios = [one / other for one, other in zip(arms["default"], arms["short"], strict=True)]
        result[name] = {"seconds": arms, "default_over_short": spread(ratios)}
    print(json.dumps(result, indent=1))
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
