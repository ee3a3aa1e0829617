"""Compare the speed of loading batches with third-party loaders, in one run.

    PYTHONPATH=FOLDER python -m tests.benchmarks.loading [--cifar CIFAR10.npz] [--photographs PHOTOGRAPHS]
        [--device cpu] [--workers 2] [--rounds 5] [--square] [--only NAME ...] [--quick] [--out FILE.json]

FOLDER contains the third-party packages (`peers.py` lists them and their differences); missing ones are
skipped. Two jobs, from uint8 pixels in the page cache to batches of normalised float32 on the device:

* pad-crop: the first 20,480 training images of CIFAR-10 (an .npz), shifts of 4, flips, in batches of 512;
* resized crop: PHOTOGRAPHS, a folder of image files, packed once with a short side of 256, repeated six
  times per epoch; random resized crops to 224, antialiased, flips, in batches of 64. --square crops them to
  256x256 for all loaders, because only images of one size can be resident on a GPU.

`ours` takes the path that suits the device; `ours, N threads` stages batches, `ours, resident` keeps the
images on the device. Each loader has a separate process, and one turn per round of one epoch or more, at
least a second. On a CPU all processes keep freed memory, as the pipeline's commands do (`stages.runtime`),
which makes all loaders faster, and larger. Reported are

* images per second, the median of the rounds and their range, and our ratio to each loader: of the medians,
  and of the fastest rounds, which are disturbed least;
* latency from asking for an epoch to its first batch: in the first epoch, and the median of later ones;
* user and system time per image, over all processes;
* peak memory in an epoch beyond Python, torch and the images: private memory of the processes, and in
  brackets the sum of their resident set sizes (`resources.py`); on a GPU also peak pinned and device
  memory, including images that are resident there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.modalities.images.sources import ImageOptions, open_source
from tests.benchmarks.contest import Record, contest
from tests.benchmarks.datasets import first_images, prepared
from tests.benchmarks.environment import environment
from tests.benchmarks.imagenet_teacher import prepared_photographs
from tests.benchmarks.loading_job import Job, ours
from tests.benchmarks.peers import PACKAGES, peers
from tests.benchmarks.turns import Contender

CIFAR_IMAGES, SHORT_SIDE, REPEATS = 20_480, 256, 6
PAD_CROP = {"size": 32, "padding": 4, "batch_size": 512}
RESIZED_CROP = {"size": 224, "padding": None, "batch_size": 64}
OURS = "ours"


def contenders(job: Job) -> list[Contender]:
    """Return all loaders of a job, ours first."""
    on_gpu, one_size = job.device.type == "cuda", job.images.uniform is not None
    found = [Contender(name=OURS, open=ours)]
    found += [
        Contender(name=f"ours, {workers} threads", open=partial(ours, workers=workers, on_device=False))
        for workers in (1, 2, 3, 4)
        if workers != job.workers or (on_gpu and one_size)
    ]
    # A CPU resizes faster with torch's kernel than by matrix products, and need not hold images twice.
    if not on_gpu and job.padding is not None:
        found.append(Contender(name="ours, resident", open=partial(ours, on_device=True)))
    if on_gpu and not one_size:
        found.append(Contender(name="ours, rendered there", open=partial(ours, on_device=True)))
    return found + peers(job)


def summary(records: dict[str, Record]) -> dict[str, dict[str, Any]]:
    """Return each loader's figures, and their ratios to ours."""
    rates = {name: [turn.images / turn.seconds for turn in r.turns] for name, r in records.items()}
    return {name: figures(record, rates[name], rates[OURS]) for name, record in records.items()}


def figures(record: Record, rates: list[float], ours_rates: list[float]) -> dict[str, Any]:
    """Return one loader's figures.

    Args:
        record: the loader's measurements.
        rates: its images per second, per round.
        ours_rates: our images per second, per round.
    """
    turns = record.turns
    cpu = [turn.cpu_seconds / turn.images for turn in turns]
    later = statistics.median(turn.first_batch_seconds for turn in turns)
    return {
        "images_a_second": _spread(rates),
        "ours_over_it": {
            "of_medians": round(statistics.median(ours_rates) / statistics.median(rates), 3),
            "of_fastest": round(max(ours_rates) / max(rates), 3),
        },
        "first_batch_values": {"mean": round(record.first.mean, 3), "std": round(record.first.std, 3)},
        "set_up_seconds": round(record.set_up_seconds, 3),
        "first_batch_milliseconds": {
            "first_epoch": round(1e3 * record.first.first_batch_seconds, 1),
            "later_epochs": round(1e3 * later, 2),
        },
        "cpu_microseconds_an_image": round(1e6 * statistics.median(cpu), 1),
        "memory_megabytes": {
            "own": round(record.memory.own / 1e6),
            "rss": round(record.memory.rss / 1e6),
            "pinned": round(max(turn.pinned_bytes for turn in turns) / 1e6),
            "device": round(max(turn.device_bytes for turn in turns) / 1e6),
        },
    }


def _spread(values: list[float]) -> dict[str, int]:
    return {
        "median": round(statistics.median(values)),
        "min": round(min(values)),
        "max": round(max(values)),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return figures as a Markdown table."""
    lines = [
        "| loader | images/s | range | ours ÷ it: medians, fastest | first batch, ms: first epoch, later "
        "| CPU µs per image | memory, MB: own (RSS; pinned; device) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        rate, ratio = row["images_a_second"], row["ours_over_it"]
        first, memory = row["first_batch_milliseconds"], row["memory_megabytes"]
        others = "; ".join(f"{memory[kind]:,}" for kind in ("rss", "pinned", "device"))
        cells = (
            name,
            f"{rate['median']:,}",
            f"{rate['min']:,} to {rate['max']:,}",
            f"{ratio['of_medians']:.2f}, {ratio['of_fastest']:.2f}",
            f"{first['first_epoch']:,.0f}, {first['later_epochs']:,.1f}",
            f"{row['cpu_microseconds_an_image']:,.1f}",
            f"{memory['own']:,} ({others})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(job: Job, loaders: list[Contender], *, rounds: int, turn_seconds: float) -> dict[str, Any]:
    """Run a job with all loaders in turn, and return their figures."""
    records, left_out = contest(loaders, job, rounds=rounds, turn_seconds=turn_seconds)
    if OURS in left_out:
        raise SystemExit(f"our loader failed, so there is nothing to compare: {left_out[OURS]}")
    return {
        "images_an_epoch": job.count,
        "source_bytes": job.images.size_bytes,
        "batch_size": job.batch_size,
        "workers": job.workers,
        "rounds": rounds,
        "loaders": summary(records),
        "left_out": left_out,
    }


def versions() -> dict[str, str]:
    """Return the versions of the other loaders."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--photographs", type=Path, help="folder of image files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes of each loader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--square", action="store_true", help="crop the photographs to squares")
    parser.add_argument("--only", nargs="*", default=[], help="prefixes of third-party loaders to run")
    parser.add_argument("--quick", action="store_true", help="small trial run; its figures mean nothing")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def jobs(arguments: argparse.Namespace, folder: Path) -> dict[str, Job]:
    """Prepare the images in a folder and return the jobs by name."""
    found = {}
    common: dict[str, Any] = {"device": torch.device(arguments.device), "workers": arguments.workers}
    if arguments.cifar:
        count = 4096 if arguments.quick else CIFAR_IMAGES
        source = open_source(f"npz:{arguments.cifar}", ImageOptions(root=folder))
        prepared(first_images(source, count), folder / "cifar", origin="cifar10")
        found["pad-crop"] = Job(folder=folder / "cifar", count=count, **PAD_CROP, **common)
    if arguments.photographs:
        data = prepared_photographs(
            arguments.photographs, folder / "photographs", short_side=SHORT_SIDE, square=arguments.square
        )
        count = (1 if arguments.quick else REPEATS) * len(data.train)
        found["resized crop"] = Job(folder=folder / "photographs", count=count, **RESIZED_CROP, **common)
    return found


def main() -> None:
    """Measure, print and save."""
    arguments = parsed()
    rounds, turn_seconds = (2, 0.0) if arguments.quick else (arguments.rounds, 1.0)
    result: dict[str, Any] = {
        "environment": environment(),
        "cores": os.cpu_count(),
        "peers": versions(),
        "jobs": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs(arguments, Path(folder)).items():
            loaders = [
                loader
                for loader in contenders(job)
                if not arguments.only or loader.name.startswith((OURS, *arguments.only))
            ]
            done = measure(job, loaders, rounds=rounds, turn_seconds=turn_seconds)
            result["jobs"][name] = done
            print(f"\n{name}, {job.size} pixels, batches of {job.batch_size}\n")
            print(table(done["loaders"]), flush=True)
            for loader, reason in done["left_out"].items():
                print(f"skipped: {loader}: {reason}", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
