"""Measure images that stay encoded in tars of a bucket, against the same tars in a local folder.

    python -m tests.benchmarks.far_tars PHOTOGRAPHS FOLDER [--photographs 2000] [--rounds 7]
        [--delay 0.05] [--workers 2] [--out FILE.json]

The photographs of a folder are repeated up to a number, under names of their own, and packed into tars of
200. A local S3 server answers each request after DELAY seconds. Both datasets stay encoded, and render the
same views, crops of 224 pixels, in their order:

    cold    the first view, with an empty cache: how many requests, and bytes ÷ those of the tars
    warm    further views, alternately from the bucket through the cache and from the folder
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch

from pipeline.core.files import write_json
from pipeline.loading.feed import Feed
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.places.cache import FOLDER
from pipeline.places.chunks import CHUNK_BYTES
from tests.benchmarks.environment import environment
from tests.benchmarks.project import Project
from tests.benchmarks.s3_server import Server, serving
from tests.benchmarks.timing import compared, seconds
from tests.pipeline.modalities.images.sources.packing import write_tar

BUCKET, CLASSES, A_TAR, SIDE = "bucket", 4, 200, 224
VIEWS = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(), flip="random")
CPU = torch.device("cpu")


def write_tars(photographs: Path, folder: Path, count: int) -> list[Path]:
    """Write photographs, repeated up to a number, as train-000.tar, …; the first ones as test-000.tar."""
    files = sorted(file for file in photographs.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
    contents = [file.read_bytes() for file in files]
    members = [
        (f"{row:06d}.{suffix}", content)
        for row in range(count)
        for suffix, content in (("jpg", contents[row % len(files)]), ("cls", f"{row % CLASSES}".encode()))
    ]
    starts = range(0, len(members), 2 * A_TAR)
    tars = [
        write_tar(folder / f"train-{start // (2 * A_TAR):03d}.tar", members[start : start + 2 * A_TAR])
        for start in starts
    ]
    return [*tars, write_tar(folder / "test-000.tar", members[: 2 * A_TAR])]


def prepared(folder: Path, source: str) -> PreparedData:
    """Prepare tars that stay encoded, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"source": source, "keep": "encoded", "image_size": SIDE, "validation": 0}
    (folder / "params.yaml").write_text(json.dumps({"data": data}))
    Project(folder, folder / "params.yaml").call("prepare")
    return PreparedData.open(folder / "data/prepared")


def feed_of(data: PreparedData, workers: int) -> Feed:
    """Return the feed of the training images."""
    preprocessing = Preprocessing(size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Feed(data.train, VIEWS, preprocessing, device=CPU, workers=workers)


def rendered(feed: Feed, view: int, rows: int) -> int:
    """Render a view in the order of the samples; return a checksum of its pixels."""
    total = 0
    for start in range(0, rows, 64):
        total += int(feed.pixels(view, np.arange(start, min(rows, start + 64))).long().sum())
    return total


def cold(server: Server, feed: Feed, rows: int, cache: Path, tars: list[Path]) -> dict[str, Any]:
    """Render the first view with an empty cache; return the requests and bytes of the bucket."""
    shutil.rmtree(cache)
    before = server.counts()
    took = seconds(lambda: rendered(feed, 0, rows), CPU)
    after = server.counts()
    sizes = [tar.stat().st_size for tar in tars if tar.name.startswith("train")]
    chunks = sum(-(-size // CHUNK_BYTES) for size in sizes)
    asked = {name: after[name] - before.get(name, 0) for name in ("requests", "bytes")}
    return {
        "seconds": took,
        "requests": asked["requests"],
        "chunks": chunks,
        "bytes_share": asked["bytes"] / sum(sizes),
    }


def warm(
    feeds: Mapping[str, Feed], rows: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Render the same views from each feed, alternately; return seconds and checksums."""
    times: dict[str, list[float]] = {name: [] for name in feeds}
    sums: dict[str, list[int]] = {name: [] for name in feeds}
    for view in range(rounds):
        for name, feed in feeds.items():
            start = time.perf_counter()
            sums[name].append(rendered(feed, view, rows))
            times[name].append(time.perf_counter() - start)
    return times, sums


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of photographs, JPEG")
    parser.add_argument("folder", type=Path, help="new folder for the tars, the cache and the data")
    parser.add_argument("--photographs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--workers", type=int, default=2, help="threads that render")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.folder.absolute()
    tars, cache = write_tars(given.source, folder / "tars", given.photographs), folder / "cache"
    os.environ[FOLDER] = str(cache)
    with serving() as server:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for tar in tars:
            client.upload_file(str(tar), BUCKET, f"tars/{tar.name}")
        server.behave(delay_seconds=given.delay)
        near = feed_of(prepared(folder / "near", f"wds:{folder / 'tars'}"), given.workers)
        far = feed_of(prepared(folder / "far", f"wds:s3://{BUCKET}/tars"), given.workers)
        rows = given.photographs
        first = cold(server, far, rows, cache, tars)
        asked = server.counts()["requests"]
        times, sums = warm({"far": far, "near": near}, rows, given.rounds)
        again = server.counts()["requests"] - asked
    result = {
        "environment": environment(),
        "photographs": rows,
        "delay_seconds": given.delay,
        "workers": given.workers,
        "cold": first,
        "warm_requests": again,
        "equal_views": sums["far"] == sums["near"],
        # Throughput from the bucket ÷ from the folder.
        "warm_over_local": compared(times["near"], times["far"]),
        "seconds": times,
    }
    print(json.dumps(result, indent=1))
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
