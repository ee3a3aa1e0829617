"""Kill a worker of Ray during each command that shares its work, and compare with one process.

    python -m tests.benchmarks.ray_work FOLDER [--students 8] [--workers 4] [--images 2000] [--epochs 4]
        [--seed 0] [--quick] [--out FILE.json]

Needs the extra `ray`. The built-in images as PNG files, one thread per process. `prepare --on ray` runs
with 1, 2 and 4 workers; a student of four ranks is trained by `train-student --on ray`, and by torchrun;
and `sweep --on ray` trains one student with several seeds, and one process one after the other. One worker
is killed by SIGKILL in each, at a random moment in the first third of the time of one process. All files
are compared: bytes, or in metrics and tables all values but measured speeds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image

from tests import patience
from tests.benchmarks.commands import start
from tests.benchmarks.environment import environment
from tests.ray_processes import commands_of, ranks_of, workers_of
from tests.stages.projects import content

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "pipeline/modalities/images/builtin/fashion_mnist_10k.npz"
RANKS = 4
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python")
PREPARED = ("data/prepared",)
TRAINED = ("models/students", "runs/main", "runs/baseline", "reports/results.json")
STUDENT = ("train-student", "small", "kd", "0", "--dump", "main")

STATE = "runs/.state/main-small-kd-0.pt"

Find = Callable[[subprocess.Popen[str]], list[psutil.Process]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where commands run.

    Args:
        logs: folder of Ray's files.
        draw: chooses victims and moments.
    """

    logs: Path
    draw: random.Random

    def run(self, project: Path, *words: str, launcher: Sequence[str] = ()) -> float:
        """Run a command of one process, or of a launcher's; return its seconds."""
        begun = time.perf_counter()
        self._end(self._start(project, *words, launcher=launcher))
        return time.perf_counter() - begun

    def run_killed(
        self, project: Path, words: Sequence[str], seconds: float, find: Find, sign: str = "."
    ) -> float:
        """Run a command on Ray, and kill one of its workers; return the seconds of the command.

        Args:
            project: its working folder.
            words: of the command.
            seconds: of one process, a third of which may pass before the kill.
            find: finds the workers that may be killed.
            sign: a file in the project that shows that they are at work.

        Raises:
            SystemExit: the command failed, or no worker was found in time.
        """
        begun, moment = time.perf_counter(), self.draw.uniform(0, seconds / 3)
        process = self._start(project, *words)
        patience.until(lambda: (project / sign).exists() and bool(find(process)), process, 0.1)
        time.sleep(moment)
        victims = find(process)
        if not victims:
            raise SystemExit(f"{words[0]}: no worker was left after {moment:.1f} s; expected one to kill")
        self.draw.choice(victims).kill()
        self._end(process)
        return time.perf_counter() - begun

    def _start(self, project: Path, *words: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
        alone = {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.logs)}
        return start(project, *words, launcher=launcher, **alone)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        _, told = patience.finish(process)
        if process.returncode:
            raise SystemExit(f"a command failed: {told}")


def lay_out(project: Path, images: int, students: int, epochs: int) -> None:
    """Write the first images of each split as files, and params.yaml."""
    with np.load(BUILT_IN) as arrays:
        for split in ("train", "test"):
            pairs = zip(arrays[f"{split}_images"][:images], arrays[f"{split}_labels"], strict=False)
            for number, (image, label) in enumerate(pairs):
                file = project / f"photos/{split}/{label}/{number:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.squeeze()).save(file)
    views = {"flip": "random", "pad_crop": {"padding": 2}}
    parameters = {
        "data": {"source": "folder:photos", "watch": "photos", "channels": 1},
        "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.05, "views": views},
        "teachers": {"large": {"model": "resnet8"}},
        "dumps": {"main": {"teacher": "large", "allow_poor_teacher": True, "views": {**views, "count": 2}}},
        "students": {"small": {"model": "resnet8", "workers": 1}},
        "recipes": {"kd": {"loss": "kd"}},
        "sweep": {"students": ["small"], "dumps": ["main"], "recipes": ["kd"], "seeds": [*range(students)]},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(parameters))


def compare(ours: Path, theirs: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Return how many files two projects have, and how many of them differ or are in one alone."""
    found, expected = content(ours, names), content(theirs, names)
    every = {*found, *expected}
    return {"files": len(every), "differing": sum(found.get(n) != expected.get(n) for n in every)}


def main() -> None:
    """Kill, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the projects")
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000, help="of each split")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 students, 300 images, 2 epochs")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        vars(given).update(students=3, images=300, epochs=2)
    # Ray's sockets lie in its folder, and their paths may have 107 characters.
    bench = Bench(logs=Path(tempfile.mkdtemp(prefix="ray-")), draw=random.Random(given.seed))
    alone = given.folder.resolve() / "alone"
    lay_out(alone, given.images, given.students, given.epochs)
    sizes = {name: vars(given)[name] for name in ("students", "workers", "images", "epochs")}
    result: dict[str, Any] = {"environment": {**environment(), "ray": version("ray")}, **sizes}

    def on_ray(
        name: str, words: Sequence[str], names: tuple[str, ...], seconds: float, find: Find, sign: str = "."
    ) -> None:
        project = alone.with_name(name)
        took = bench.run_killed(project, [*words, "--on", "ray"], seconds, find, sign)
        result[name] = {"seconds": took, "one_process": seconds, **compare(project, alone, names)}
        print(json.dumps({name: result[name]}), file=sys.stderr)

    def copy(name: str) -> None:
        shutil.copytree(alone, alone.with_name(name))

    counts = sorted({1, 2, given.workers})
    for workers in counts:
        copy(f"prepare-{workers}")
    seconds = bench.run(alone, "prepare")
    for workers in counts:
        on_ray(f"prepare-{workers}", ["prepare", "--workers", str(workers)], PREPARED, seconds, workers_of)
    for words in (("train-teacher", "large"), ("cache-logits", "main")):
        bench.run(alone, *words)
    copy("ranks")
    copy("sweep")
    launcher = (*TORCHRUN, f"--nproc-per-node={RANKS}")
    seconds = bench.run(alone, *STUDENT, "--workers", "1", launcher=launcher)
    ranks = ("--set", f"students.small.workers={RANKS}")
    on_ray("ranks", [*STUDENT, *ranks], TRAINED, seconds, ranks_of, STATE)
    shutil.rmtree(alone / "runs/main-small-kd-0")
    seconds = bench.run(alone, "sweep")
    on_ray("sweep", ["sweep", "--workers", str(given.workers)], TRAINED, seconds, commands_of)
    shutil.rmtree(bench.logs)
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    compared = [part for part in result.values() if isinstance(part, dict) and "files" in part]
    if any(part["differing"] or not part["files"] for part in compared):
        raise SystemExit("files differ")


if __name__ == "__main__":
    main()
