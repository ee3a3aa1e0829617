"""Measure students that read a store in a bucket, over a network that is slow and fails at times.

    python -m tests.benchmarks.far_store FOLDER [--runs 10] [--images 10000] [--epochs 8]
        [--delay 0.05] [--failing 0.01] [--out FILE.json]

The first built-in images of each split, the built-in teacher, `resnet8` students. The store is made once in
a local folder and copied to a local S3 server, which then answers each request after DELAY seconds and lets
a share FAILING of them fail. Each seed trains two students, which must end with equal weights:

    near    the store in the local folder
    far     the same in the bucket

`views_per_epoch` counts the bytes of shards that the server sent, failed answers included, in sizes of a
view. `once` is everything else, e.g. keys, digests and the outputs of held-out samples, per run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from pipeline.core.files import write_json
from pipeline.core.hashing import file_digest
from pipeline.places.folder import LocalPlace
from pipeline.places.objects import ObjectPlace
from pipeline.places.place import required
from pipeline.store.reader import LogitStore
from stages import paths
from tests.benchmarks.environment import environment
from tests.benchmarks.live_dump import write_images
from tests.benchmarks.project import Project
from tests.benchmarks.s3_server import Server, serving
from tests.benchmarks.timing import spread

ROOT = Path(__file__).parents[2]
NEAR, BUCKET, STUDENT = "near", "bucket", "resnet8"
FAR = f"s3://{BUCKET}/logits"


@dataclass(frozen=True, kw_only=True)
class Network:
    """Delay of each request, and the share that fails."""

    delay_seconds: float
    failing: float


def copy_store(folder: Path) -> None:
    """Copy the store of the folder to the bucket."""
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    source = LocalPlace(folder / NEAR / "main.zarr")
    target = ObjectPlace.open(f"{FAR}/main.zarr")
    for name in source.sizes():
        target.put(name, required(source, name))


def view_bytes(folder: Path) -> int:
    """Return the size of the shards of one view."""
    store = LogitStore.open(folder / NEAR / "main.zarr")
    return store.manifest.totals["train"].bytes // store.n_views


def trained(project: Project, place: str, seed: int) -> dict[str, Any]:
    """Train a student with the store in a place; return its stall and weights, or the failure."""
    try:
        project.call(
            *("train-student", STUDENT, "kd", str(seed), "--dump", "main"),
            overrides=[f"places.logits={place}"],
        )
    except subprocess.CalledProcessError as error:
        return {"exit_status": error.returncode}
    name = paths.run_name("main", STUDENT, "kd", seed)
    metrics = json.loads((project.folder / paths.RUNS / name / "metrics.json").read_text())
    checkpoint = project.folder / paths.STUDENTS / f"{name}.last.pt"
    return {"stall_fraction": metrics["stall_fraction"], "weights": file_digest(checkpoint)}


def compared(project: Project, server: Server, network: Network, seed: int) -> dict[str, Any]:
    """Train both students of a seed; return their figures, and the requests and bytes of the far one."""
    near = trained(project, NEAR, seed)
    server.behave(delay_seconds=network.delay_seconds, failing=network.failing)
    far = trained(project, FAR, seed)
    return {"seed": seed, "near": near, "far": {**far, **server.counts()}}


def summary(runs: list[dict[str, Any]], *, epochs: int, view: int) -> dict[str, Any]:
    """Return the figures of all runs.

    Args:
        runs: as `compared` returns them.
        epochs: of each run.
        view: size of a view in bytes.
    """
    done = [run for run in runs if "weights" in run["far"] and "weights" in run["near"]]
    shards = [run["far"]["bytes of train shards"] for run in done]
    return {
        "failed_runs": len(runs) - len(done),
        "equal_weights": sum(run["near"]["weights"] == run["far"]["weights"] for run in done),
        "stall_fraction": {
            arm: spread([run[arm]["stall_fraction"] for run in done]) for arm in ("near", "far")
        },
        "views_per_epoch": spread([n_bytes / view / epochs for n_bytes in shards]),
        "once_bytes": spread([run["far"]["bytes"] - n for run, n in zip(done, shards, strict=True)]),
        "requests": sum(run["far"]["requests"] for run in done),
        "failed_requests": sum(run["far"]["failed"] for run in done),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the runs")
    parser.add_argument("--runs", type=int, default=10, help="seeds")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--failing", type=float, default=0.01, help="share of requests")
    parser.add_argument("--images", type=int, default=10_000, help="of each split")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    overrides = ["data.source=npz:data.npz", f"training.epochs={arguments.epochs}"]
    project = Project(arguments.folder, ROOT / "params.yaml", overrides, device="cpu")
    write_images(arguments.folder, arguments.images)
    project.make(teachers=["wrn_16_2"])
    project.call("cache-logits", "main", overrides=[f"places.logits={NEAR}"])
    view = view_bytes(arguments.folder)
    network = Network(delay_seconds=arguments.delay, failing=arguments.failing)
    with serving() as server:
        copy_store(arguments.folder)
        runs = [compared(project, server, network, seed) for seed in range(arguments.runs)]
    result = {
        "environment": environment(),
        "delay_seconds": arguments.delay,
        "failing": arguments.failing,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "view_bytes": view,
        **summary(runs, epochs=arguments.epochs, view=view),
        "runs": runs,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
