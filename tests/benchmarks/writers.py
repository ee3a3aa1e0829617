"""Let several processes write one store at the same moment, without a lock that keeps them apart.

    python -m tests.benchmarks.writers [--trials 100] [--shards 200] [--minutes 15] [--out FILE.json]

In a local folder where `flock` does nothing, as on some network file systems, and on a local S3 server:

    starts    8 processes begin the same dump of an empty place at once. Counted are processes that fail,
              and files that differ from those of one process.
    races     2 processes whose teachers' outputs differ, as between devices, make each of 200 shards at
              once. Counted are refusals that name the shard, and, once one process has completed the store,
              shards that are neither writer's, and faults that `verify` finds.

The processes are forks, so that they begin within milliseconds.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pipeline.codecs import TeacherOutput
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import MismatchError
from pipeline.core.files import write_json
from pipeline.core.hashing import bytes_digest
from pipeline.dump.plan import plan_dump
from pipeline.dump.run import cache_logits
from pipeline.dump.shards import ShardMaker
from pipeline.dump.spec import DumpSpec
from pipeline.dump.verify import verify
from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.places.folder import Root, at
from pipeline.places.objects import ObjectPlace
from pipeline.places.place import required
from pipeline.store.layout import Layout, ShardId
from pipeline.store.lock import Slice
from pipeline.tasks.table import find_task
from tests.benchmarks.datasets import made_up
from tests.benchmarks.environment import environment
from tests.benchmarks.s3_server import serving

WRITERS, BLOCKS, ROWS = 8, 10, 16
BUCKET = "bucket"
# No shard of a training section: a dump of this part makes the frame and the held-out samples.
_NOTHING = Slice(0, 1_000_000)
_REFUSED = re.compile(r"another process has written shard (\S+) with other bytes")
_FORK = multiprocessing.get_context("fork")
Open = Callable[[], Root]
# A process's result, or its error in words.
Outcome = tuple[Any, str]


class DriftingTeacher(Teacher):
    """A teacher of the same weights whose outputs differ, as on another device."""

    __slots__ = ()

    def output(self, images: torch.Tensor) -> TeacherOutput:
        found = super().output(images)
        return TeacherOutput(found.logits * 1.05, found.features)


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A small dump of made-up images.

    Args:
        context: the images.
        teachers: two of equal weights, the second with other outputs.
        spec: views, codec and shards.
    """

    context: RunContext
    teachers: tuple[Teacher, Teacher]
    spec: DumpSpec

    @classmethod
    def of(cls, views: int) -> Dump:
        """Return a dump of so many views of `BLOCKS` shards."""
        data = made_up(BLOCKS * ROWS, 8, classes=4, test=ROWS)
        torch.manual_seed(0)
        architecture = Architecture(name="resnet8", num_classes=4, channels=3, stem_stride=1)
        card = ModelCard(
            architecture=architecture,
            preprocessing=Preprocessing(size=8, **data.statistics),
            classes=data.classes,
        )
        given = {"name": "t", "network": build(architecture).eval(), "card": card, "precision": "fp32"}
        crops = ViewSpec(seed=9, random_resized_crop=RandomResizedCrop(), flip="random")
        spec = DumpSpec(
            views=crops,
            view_count=views,
            batch_size=ROWS,
            shard_rows=ROWS,
            codec=CodecSpec(name="affine8"),
            allow_poor_teacher=True,
        )
        return cls(
            context=RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1),
            teachers=(Teacher(**given), DriftingTeacher(**given)),
            spec=spec,
        )

    def write(self, root: Root, teacher: int = 0) -> None:
        """Make the whole store."""
        cache_logits(self.context, self.teachers[teacher], self.spec, root)


def start_together(dump: Dump, place: Open) -> list[Outcome]:
    """Let all writers make the same store of an empty place."""
    return at_once(WRITERS, lambda _, barrier: (barrier.wait(), dump.write(place()))[1])


def race(dump: Dump, place: Open) -> list[Outcome]:
    """Let two unequal writers make each shard; return the refusals of each."""
    alone(
        lambda: cache_logits(
            dump.context, dump.teachers[0], dump.spec, place(), part=_NOTHING, completes=False
        )
    )

    def make(number: int, barrier: threading.Barrier) -> list[str]:
        plan = plan_dump(dump.context, dump.teachers[number], dump.spec, place())
        maker, refused = ShardMaker(plan), []
        # Both write every shard, also if the other one was faster.
        maker.writer.missing = list  # type: ignore[method-assign,assignment]
        for shard in train_shards(plan.header.layout):
            barrier.wait()
            try:
                maker.make([shard])
            except MismatchError as error:
                refused.append(str(error))
        return refused

    return at_once(2, make)


def train_shards(layout: Layout) -> list[ShardId]:
    """Return the shards of the training section."""
    return [shard for shard in layout.shards() if shard.section == "train"]


def digests(root: Root) -> dict[str, str]:
    """Return the SHA-256 of each file of a place, by name."""
    return {name: bytes_digest(required(at(root), name)) for name in at(root).sizes()}


def whose(found: dict[str, str], one: dict[str, str], other: dict[str, str]) -> dict[str, int]:
    """Count the training shards that are of one writer, of the other, and of neither as a whole."""
    files: dict[str, list[str]] = {}
    for name in one:
        if match := re.fullmatch(r"train/\w+/c/(\d+)/(\d+)(/0)*", name):
            files.setdefault(f"{match[1]}/{match[2]}", []).append(name)
    counts = {"of_one": 0, "of_the_other": 0, "of_neither": 0}
    for names in files.values():
        given = [found.get(name) for name in names]
        is_one, is_other = (given == [whole[name] for name in names] for whole in (one, other))
        counts["of_one" if is_one else "of_the_other" if is_other else "of_neither"] += 1
    return counts


# Processes.


def at_once(count: int, work: Callable[[int, Any], Any]) -> list[Outcome]:
    """Run a function in so many forks, with their number and a barrier; return each result or error."""
    barrier, running = _FORK.Barrier(count), []
    for number in range(count):
        ours, theirs = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_run, args=(theirs, work, number, barrier))
        process.start()
        theirs.close()
        running.append((process, ours))
    found = []
    for process, ours in running:
        try:
            found.append(ours.recv())
        except EOFError:
            found.append((None, "the process has died"))
        process.join()
    return found


def alone(work: Callable[[], Any]) -> Any:
    """Run a function in one fork; return its result."""
    ((result, error),) = at_once(1, lambda *_: work())
    if error:
        raise SystemExit(error)
    return result


def _run(answer: Connection, work: Callable[..., Any], number: int, barrier: threading.Barrier) -> None:
    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    with Path(os.devnull).open("w") as silent, redirect_stderr(silent):
        try:
            answer.send((work(number, barrier), ""))
        except BaseException as error:  # whatever it is, it is a process that fails
            barrier.abort()
            answer.send((None, f"{type(error).__name__}: {error}"))


# Measurements.


def measure_starts(place: Callable[[str], Open], *, trials: int, seconds: float) -> dict[str, Any]:
    """Count failures and differing files of all trials that fit into the time."""
    dump, end, made = Dump.of(views=3), time.monotonic() + seconds, 0
    expected = alone(lambda: (dump.write(place("one.zarr")()), digests(place("one.zarr")()))[1])
    failures, differing = [], 0
    for trial in range(trials):
        if time.monotonic() > end:
            break
        root = place(f"starts-{trial}.zarr")
        failures += [error for _, error in start_together(dump, root) if error]
        found = alone(lambda root=root: digests(root()))
        differing += sum(found.get(name) != expected.get(name) for name in {*found, *expected})
        made += 1
    return {
        "trials": made,
        "writers": WRITERS,
        "shards": 3 * BLOCKS,
        "failed_processes": len(failures),
        "differing_files": differing,
        "failures": failures[:5],
    }


def measure_race(place: Callable[[str], Open], *, shards: int) -> dict[str, Any]:
    """Race unequal writers for so many shards, complete the store, and count what is wrong."""
    dump = Dump.of(views=shards // BLOCKS)
    one, other = (
        alone(lambda n=n: (dump.write(place(f"{n}.zarr")(), n), digests(place(f"{n}.zarr")()))[1])
        for n in range(2)
    )
    root, start = place("race.zarr"), time.monotonic()
    outcomes = race(dump, root)
    seconds = time.monotonic() - start
    failures = [error for _, error in outcomes if error]
    refused = [_REFUSED.search(text) for told, _ in outcomes for text in told or ()]
    named = [match[1] for match in refused if match]

    def complete() -> tuple[int, dict[str, str], list[str]]:
        plan = plan_dump(dump.context, dump.teachers[0], dump.spec, root())
        finished = plan.header.layout.n_shards - len(plan.missing)
        dump.write(root())
        return finished, digests(root()), verify(root()).bad

    finished, found, bad = alone(complete)
    return {
        "shards": shards,
        "seconds": round(seconds, 1),
        "failed_processes": len(failures),
        "failures": failures[:5],
        "refusals": len(refused),
        "shards_named": len(set(named)),
        "finished_after_the_race": finished,
        **whose(found, one, other),
        "faults": len(bad),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="starts in each place")
    parser.add_argument("--shards", type=int, default=200, help="that are raced, a multiple of 10")
    parser.add_argument("--minutes", type=float, default=15, help="for the starts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        import boto3

        boto3.client("s3", endpoint_url=server.address).create_bucket(Bucket=BUCKET)
        places: dict[str, Callable[[str], Open]] = {
            "folder": lambda name: lambda: Path(folder) / name,
            "bucket": lambda name: lambda: ObjectPlace.open(f"s3://{BUCKET}/{name}"),
        }
        result: dict[str, Any] = {"environment": environment()}
        for name, place in places.items():
            seconds = 60 * arguments.minutes / len(places)
            result[name] = {
                "races": measure_race(place, shards=arguments.shards),
                "starts": measure_starts(place, trials=arguments.trials, seconds=seconds),
            }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
