"""Measure the time that a student saves by following its dump instead of waiting for it.

    python -m tests.benchmarks.live_dump FOLDER [--views 8] [--images 10000] [--student shufflenet]
        [--epochs N] [--rounds 3] [--quick] [--out FILE.json]

The built-in images and teacher. The dump is pinned to one core and the student to another, with one thread
each, in both arms; the arms alternate:

    one after the other    cache-logits, then train-student
    at once                cache-logits --by-view, and train-student --follow beside it

The number of epochs is chosen so that dump and student take equally long, from one dump and one short
student before the first round. Then a student that waits for V views one by one ends after
(1 + 1 / V) / 2 of the time of both: 0.56 for 8 views, without the start of the two programs. Both arms must
end with the same weights, byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages import paths
from tests.benchmarks.environment import environment
from tests.benchmarks.timing import spread

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "pipeline/modalities/images/builtin/fashion_mnist_10k.npz"
DUMP_CORE, STUDENT_CORE = 0, 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dump and a student in a folder.

    Args:
        folder: working folder of the commands.
        student: name in params.yaml.
        views: V.
        epochs: of the student.
    """

    folder: Path
    student: str
    views: int
    epochs: int

    def prepare(self, images: int) -> None:
        """Write the first images of each split, prepare them and the teacher."""
        write_images(self.folder, images)
        for command in (("prepare",), ("train-teacher", "wrn_16_2")):
            finish(self.begin(*command, core=STUDENT_CORE))

    def begin(self, *arguments: str, core: int) -> subprocess.Popen[bytes]:
        """Start a command on one core, with one thread."""
        settings = ("data.source=npz:data.npz", f"dumps.main.views.count={self.views}")
        settings += (f"training.epochs={self.epochs}",)
        told = [word for one in settings for word in ("--set", one)]
        code = f"import os; os.sched_setaffinity(0, {{{core}}}); from stages.cli import main; main()"
        where = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--params", str(ROOT / "params.yaml"), *told],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"},
        )

    def dump(self, *options: str) -> subprocess.Popen[bytes]:
        return self.begin("cache-logits", "main", "--workers", "1", *options, core=DUMP_CORE)

    def learn(self, *options: str) -> subprocess.Popen[bytes]:
        command = ("train-student", self.student, "kd", "0", "--dump", "main", "--workers", "1")
        return self.begin(*command, *options, core=STUDENT_CORE)

    @property
    def run(self) -> str:
        return paths.run_name("main", self.student, "kd", 0)

    def clear(self) -> None:
        """Remove dump and student."""
        for path in (paths.store("main"), paths.STUDENTS, paths.RUNS / self.run, paths.STATE):
            shutil.rmtree(self.folder / path, ignore_errors=True)

    def weights(self) -> str:
        """Return the SHA-256 of the student's checkpoints, of the best and of the last epoch."""
        ends = (".pt", ".last.pt")
        files = [self.folder / paths.STUDENTS / f"{self.run}{end}" for end in ends]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def epoch_seconds(self) -> float:
        """Return the seconds of the student's fastest epoch, with its evaluation."""
        with (self.folder / paths.RUNS / self.run / "history.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        return min(float(row["seconds"]) + float(row["evaluation_seconds"]) for row in rows)


def write_images(folder: Path, count: int) -> None:
    """Write the first built-in images of each split to data.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(BUILT_IN) as arrays:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        some = {name: arrays[name][:count] for name in names}
    pixels = {name: some[name][..., None] for name in names if name.endswith("images")}
    np.savez(folder / "data.npz", **{**some, **pixels})


def finish(*begun: subprocess.Popen[bytes]) -> None:
    """Wait for commands; stop all if one fails."""
    try:
        if any(one.wait() for one in begun):
            raise SystemExit("a command failed")
    finally:
        for one in begun:
            one.kill()
            one.wait()


def one_after_the_other(job: Job) -> dict[str, Any]:
    """Return the seconds of a dump and of a student that waits for it."""
    job.clear()
    start = time.perf_counter()
    finish(job.dump())
    between = time.perf_counter()
    finish(job.learn())
    end = time.perf_counter()
    parts = {"dump_seconds": between - start, "student_seconds": end - between}
    return {"seconds": end - start, **parts, "weights": job.weights()}


def at_once(job: Job) -> dict[str, Any]:
    """Return the seconds of a dump and of a student that follows it."""
    job.clear()
    start = time.perf_counter()
    finish(job.dump("--by-view"), job.learn("--follow"))
    return {"seconds": time.perf_counter() - start, "weights": job.weights()}


def balanced_epochs(job: Job) -> int:
    """Return the number of epochs with which the student takes as long as the dump."""
    tried, epoch = one_after_the_other(job), job.epoch_seconds()
    beside = tried["student_seconds"] - job.epochs * epoch
    return max(2, round((tried["dump_seconds"] - beside) / epoch))


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """Return all rounds, and the ratio of the arms."""
    arms = {"one_after_the_other": one_after_the_other, "at_once": at_once}
    found = [{name: arm(job) for name, arm in arms.items()} for _ in range(rounds)]
    weights = {arm["weights"] for one in found for arm in one.values()}
    waited = [one["one_after_the_other"] for one in found]
    return {
        "rounds": found,
        "same_weights": len(weights) == 1,
        "at_once_over_one_after_the_other": spread(
            [one["at_once"]["seconds"] / one["one_after_the_other"]["seconds"] for one in found]
        ),
        "student_over_dump": spread([one["student_seconds"] / one["dump_seconds"] for one in waited]),
        "bound": (1 + 1 / job.views) / 2,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the runs")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--images", type=int, default=10_000, help="of each split")
    parser.add_argument("--student", default="shufflenet", help="name in params.yaml")
    parser.add_argument("--epochs", type=int, help="instead of as many as take as long as the dump")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small trial run; its figures mean nothing")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(images=1000, views=3, rounds=1)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("one core only; expected two")
    trial = Job(folder=arguments.folder, student=arguments.student, views=arguments.views, epochs=2)
    trial.prepare(arguments.images)
    epochs = arguments.epochs or balanced_epochs(trial)
    job = Job(folder=arguments.folder, student=arguments.student, views=arguments.views, epochs=epochs)
    sizes = {"views": job.views, "images": arguments.images, "student": job.student, "epochs": epochs}
    result = {"environment": environment(), **sizes, **measure(job, arguments.rounds)}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if not result["same_weights"]:
        raise SystemExit("the arms ended with different weights")


if __name__ == "__main__":
    main()
