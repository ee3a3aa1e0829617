"""Speed of `prepare` with one worker and with several, in alternation, and whether the bytes are equal.

    python -m tests.benchmarks.prepare_speed                    # images, texts and clips; two workers
    nice -n -10 python -m tests.benchmarks.prepare_speed --samples 20000 --rounds 5

Each round prepares the same source with one worker and then with several. The ratio of a round does not
depend on what else the machine does for long. CPU seconds tell the same without a clock: the part of them
that the first process spends alone bounds the ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.hashing import file_digest
from pipeline.modalities.table import find_modality
from pipeline.samples.prepare import Preparation, prepare

WORDS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One preparation.

    Args:
        seconds: of wall clock.
        first_cpu_seconds: CPU time of the first process.
        all_cpu_seconds: CPU time of all processes.
    """

    seconds: float
    first_cpu_seconds: float
    all_cpu_seconds: float


def write_images(folder: Path, count: int) -> tuple[str, dict[str, Any]]:
    """Write small colour images as arrays."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(count) % 10
    few = {"test_images": images[:100], "test_labels": labels[:100]}
    np.savez(folder / "images.npz", train_images=images, train_labels=labels, **few)
    return f"npz:{folder / 'images.npz'}", {}


def write_texts(folder: Path, count: int) -> tuple[str, dict[str, Any]]:
    """Write texts of 40 words as a table."""
    numbers = np.random.default_rng(0).integers(0, WORDS, (count, 40))
    lines = [f"{' '.join(f'word{n}' for n in row)},{i % 4}" for i, row in enumerate(numbers.tolist())]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]))
    return f"csv:{folder / 'texts.csv'}", {}


def write_clips(folder: Path, count: int) -> tuple[str, dict[str, Any]]:
    """Write clips of half a second as arrays, to be resampled."""
    generator, labels = np.random.default_rng(0), np.arange(count) % 10
    clips = generator.integers(-20_000, 20_000, (count, 4000)).astype(np.int16)
    few = {"test_clips": clips[:100], "test_labels": labels[:100], "sample_rate": 8000}
    np.savez(folder / "clips.npz", train_clips=clips, train_labels=labels, **few)
    return f"npz:{folder / 'clips.npz'}", {"sample_rate": 6000}


WRITERS: dict[str, Callable[[Path, int], tuple[str, dict[str, Any]]]] = {
    "images": write_images,
    "text": write_texts,
    "audio": write_clips,
}


def measure(name: str, source: str, options: dict[str, Any], workers: int) -> tuple[Result, dict[str, str]]:
    """Prepare a source; return the times and the digests of all files."""
    modality = find_modality(name)
    chosen = modality.options_type(**options)
    opened = modality.open_source(source, chosen)
    with tempfile.TemporaryDirectory() as made:
        folder, before, start = Path(made) / "prepared", _cpu_seconds(), time.perf_counter()
        prepare(
            opened,
            folder,
            Preparation(origin=source, validation=0.1),
            modality.intake(opened, folder, chosen),
            state=Path(made) / "state",
            workers=workers,
            progress=lambda samples, _: iter(samples),
        )
        seconds, after = time.perf_counter() - start, _cpu_seconds()
        digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    first, all_of_them = after[0] - before[0], sum(after) - sum(before)
    return Result(seconds=seconds, first_cpu_seconds=first, all_cpu_seconds=all_of_them), digests


def _cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds of this process, and of its children that have ended."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, children = (used.ru_utime + used.ru_stime for used in found)
    return own, children


def compare(name: str, *, samples: int, workers: int, rounds: int) -> dict[str, Any]:
    """Alternate between one and several workers; return all times and the median ratio."""
    with tempfile.TemporaryDirectory() as folder:
        source, options = WRITERS[name](Path(folder), samples)
        found: dict[int, list[Result]] = {1: [], workers: []}
        contents = []
        for _ in range(rounds):
            for count, results in found.items():
                result, digests = measure(name, source, options, count)
                results.append(result)
                contents.append(digests)
    several = found[workers]
    # With all CPU seconds spread over the workers, but for those of the first process alone.
    shares = [(r.all_cpu_seconds - r.first_cpu_seconds) / workers + r.first_cpu_seconds for r in several]
    return {
        "samples": samples,
        "workers": workers,
        "same_bytes": all(content == contents[0] for content in contents),
        "ratio": statistics.median(a.seconds / b.seconds for a, b in zip(*found.values(), strict=True)),
        "ratio_by_cpu": statistics.median(
            one.all_cpu_seconds / share for one, share in zip(found[1], shares, strict=True)
        ),
        "rounds": {count: [asdict(result) for result in results] for count, results in found.items()},
    }


def main() -> None:
    """Print the comparison of each modality as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(WRITERS), default=None)
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else WRITERS:
        found = compare(name, samples=asked.samples, workers=asked.workers, rounds=asked.rounds)
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
