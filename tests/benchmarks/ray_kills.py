"""Kill workers of Ray and the command itself at random moments of a dump, and compare its bytes.

    python -m tests.benchmarks.ray_kills FOLDER [--workers 4] [--kills 50] [--driver-kills 5] [--seed 0]
        [--images 2000] [--views 8] [--shard-rows 64] [--quick] [--out FILE.json]

Needs the extra `ray`, and `moto[s3]`. The built-in images and teacher, one thread per worker. One process
writes the dump; then `cache-logits --on ray` writes it into a local folder, and into a bucket of a local S3
server. Meanwhile a worker that makes shards is killed by SIGKILL, again and again: each time when two more
shards are written, a random part of a second later. After equal shares of these kills the command itself is
killed, and begun again once its processes are gone.

With `--by-view` a unit is one shard, so that the number of units does not depend on the kills. Units made
are counted by a line that each worker writes to its log, so that those of killed workers count too. They
may exceed the units by one per killed worker: those killed alone, and `workers_lost` with the command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.places.folder import Root, at
from pipeline.places.objects import ObjectPlace
from tests import patience
from tests.benchmarks.commands import start
from tests.benchmarks.environment import environment
from tests.ray_processes import family_of, workers_of

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "pipeline/modalities/images/builtin/fashion_mnist_10k.npz"
BUCKET = "bucket"
# What a worker writes when it begins a unit of training samples, see `ShardMaker.make`.
_BEGUN = re.compile(r"^train: ", re.MULTILINE)
_SHARDS_BETWEEN = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dump in a folder.

    Args:
        folder: working folder of the commands.
        logs: new folder for Ray's files.
        workers: of Ray.
        views, shard_rows: of the dump.
    """

    folder: Path
    logs: Path
    workers: int
    views: int
    shard_rows: int

    def prepare(self, images: int) -> None:
        """Write the first images of each split, prepare them and the teacher."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with np.load(BUILT_IN) as arrays:
            names = ("train_images", "train_labels", "test_images", "test_labels")
            some = {name: arrays[name][:images] for name in names}
        pixels = {name: some[name][..., None] for name in names if name.endswith("images")}
        np.savez(self.folder / "data.npz", **{**some, **pixels})
        for command in (("prepare",), ("train-teacher", "wrn_16_2")):
            self.finish(self.begin(*command))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command with one thread."""
        settings = ("data.source=npz:data.npz", f"dumps.main.views.count={self.views}")
        settings += (f"dumps.main.shard_rows={self.shard_rows}", "dumps.main.codec=affine8")
        told = [word for one in settings for word in ("--set", one)]
        words = (*arguments, "--params", str(ROOT / "params.yaml"), *told)
        return start(self.folder, *words, OMP_NUM_THREADS="1", RAY_TMPDIR=str(self.logs))

    def dump(self, place: Root, *options: str) -> subprocess.Popen[str]:
        return self.begin("cache-logits", "main", "--out", str(place), *options)

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> None:
        """Wait for a command.

        Raises:
            SystemExit: it failed.
        """
        _, told = patience.finish(process)
        if process.returncode:
            raise SystemExit(f"a command failed: {told}")

    def units_made(self) -> int:
        """Return how many units the workers of all commands have begun."""
        files = self.logs.glob("ray/session_2*/logs/worker-*.err")
        return sum(len(_BEGUN.findall(file.read_text(errors="replace"))) for file in files)


def content(place: Root) -> dict[str, bytes | None]:
    """Return the bytes of each file of a store."""
    return {name: at(place).get(name) for name in at(place).sizes()}


def shards_done(place: Root) -> int:
    return sum(name.startswith("train") for name in at(place).names("records"))


def kill_workers(
    job: Job, place: Root, process: subprocess.Popen[str], most: int, draw: random.Random
) -> int:
    """Kill random workers of a command until it ends, at most so many; return how many."""
    killed = 0
    while killed < most:
        goal = shards_done(place) + _SHARDS_BETWEEN
        if not patience.until(lambda goal=goal: shards_done(place) >= goal, process, 0.2):
            break
        time.sleep(draw.random())
        if victims := workers_of(process):
            draw.choice(victims).kill()
            killed += 1
    return killed


def kill_command(process: subprocess.Popen[str]) -> int:
    """Kill a command, and wait until its processes are gone; return how many workers were at work."""
    family, lost = family_of(process), len(workers_of(process))
    process.kill()
    process.communicate()
    psutil.wait_procs(family)
    return lost


def campaign(job: Job, place: Root, kills: int, driver_kills: int, seed: int) -> dict[str, Any]:
    """Make a dump under kills; return what was killed and made."""
    draw, start = random.Random(seed), time.perf_counter()
    before, killed, commands, lost = job.units_made(), 0, 0, 0
    share = -(-kills // (driver_kills + 1))
    while True:
        process = job.dump(place, "--by-view", "--on", "ray", "--workers", str(job.workers))
        killed += kill_workers(job, place, process, min(share, kills - killed), draw)
        if commands == driver_kills or process.poll() is not None:
            break
        lost += kill_command(process)
        commands += 1
    job.finish(process)
    return {
        "kills": killed,
        "driver_kills": commands,
        "workers_lost": lost,
        "units_made": job.units_made() - before,
        "seconds": time.perf_counter() - start,
    }


@contextmanager
def bucket() -> Iterator[ObjectPlace]:
    """Start a local S3 server, and yield the place of a store in a new bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto.start()
    host, port = moto.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
    yield ObjectPlace.open(f"s3://{BUCKET}/main.zarr")
    moto.stop()


def main() -> None:
    """Kill, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the stores")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--driver-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=2000, help="of each split")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="2 kills, 1 of the command")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(kills=2, driver_kills=1, images=1000, views=4)
    # Ray's sockets lie in its folder, and their paths may have 107 characters.
    logs = Path(tempfile.mkdtemp(prefix="ray-"))
    sizes = {"workers": arguments.workers, "views": arguments.views, "shard_rows": arguments.shard_rows}
    job = Job(folder=arguments.folder.resolve(), logs=logs, **sizes)
    job.prepare(arguments.images)
    one = job.folder / "one.zarr"
    job.finish(job.dump(one))
    expected = content(one)
    result: dict[str, Any] = {"environment": {**environment(), "ray": version("ray")}, **sizes}
    units = sum(name.startswith("train/codes/c/") for name in expected)
    result |= {"images": arguments.images, "files": len(expected), "units": units}
    with bucket() as remote:
        for name, place in {"folder": job.folder / "ray.zarr", "bucket": remote}.items():
            made = campaign(job, place, arguments.kills, arguments.driver_kills, arguments.seed)
            found = content(place)
            differing = [file for file in {*found, *expected} if found.get(file) != expected.get(file)]
            result[name] = {**made, "differing_files": len(differing)}
            print(json.dumps({name: result[name]}), file=sys.stderr)
    shutil.rmtree(logs)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if any(result[name]["differing_files"] for name in ("folder", "bucket")):
        raise SystemExit("the stores have different bytes")


if __name__ == "__main__":
    main()
