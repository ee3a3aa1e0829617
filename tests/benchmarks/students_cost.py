"""Measure the cost of students: with a loader, from cached logits, and many of them, with a large teacher.

    python -m tests.benchmarks.students_cost [--cifar CIFAR10.npz] [--device cpu] [--student mobilenet]
        [--teacher NAME] [--precision fp32] [--batch-size 128] [--images 1024] [--workers 2] [--rounds 5]
        [--students 10] [--epochs 6] [--views 2] [--quick] [--out FILE.json]

Images are CIFAR-10's, or the built-in Fashion-MNIST. Nothing is trained beforehand: an untrained teacher
costs the same. The teacher is the one in `teacher_times.TEACHERS` whose forward pass takes closest to ten
times the student's, measured here on one resident batch in evaluation mode. The ratio of floating-point
operations is printed too. The two sides of each ratio alternate in one run:

* student's images per second with the loader, over those of the same step on one resident batch, for each
  path of the feed that the device supports;
* seconds of an epoch from cached logits, over a cross-entropy epoch with the same loader;
* seconds of an epoch from cached logits, over an epoch with the teacher in the loop, beside
  step / (step + forward), the bound for a loader and a cache without cost;
* seconds of a whole cached job (the dump of V views, then M students of E epochs), over an online job (M
  students, each with the teacher in the loop), beside its bound
  (teacher V + M student E) / (M E (teacher + student)). Students are trained in turn, one cached, one
  online; the first one and the first three are M = 1 and M = 3.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.settings import TrainingSettings
from stages.runtime import keep_freed_memory
from tests.benchmarks.datasets import first_images, prepared
from tests.benchmarks.environment import environment
from tests.benchmarks.main_job import STUDENTS
from tests.benchmarks.student_epochs import Student, StudentEpochs, make_loader
from tests.benchmarks.teacher_times import TEACHERS, Costs, choose_teacher, measured, untrained
from tests.benchmarks.timing import ratio
from tests.benchmarks.whole_job import VIEWS, Rig, whole_costs, whole_job


def paths(device: torch.device) -> dict[str, bool | None]:
    """Return the paths of a feed on a device, with the `on_device` of the context for each."""
    return {"staged": False, "resident": None if device.type == "cuda" else True}


def loader_shares(rig: Rig, store: LogitStore, rounds: int) -> dict[str, dict[str, float]]:
    """Return a student's images per second with the loader over those without, by path."""
    ways = paths(rig.context.device).items()
    return {path: loader_share(rig, store, rounds, on_device) for path, on_device in ways}


def loader_share(rig: Rig, store: LogitStore, rounds: int, on_device: bool | None) -> dict[str, float]:
    """Return the ratio of `loader_shares` for one path."""
    context = replace(rig.context, on_device=on_device)
    epochs = StudentEpochs(context, rig.student(), rig.teacher, store, rig.views)
    return ratio(rounds, context.device, epochs.one_batch, epochs.cached)


def epoch_ratios(rig: Rig, store: LogitStore, rounds: int) -> dict[str, dict[str, float]]:
    """Compare epochs on cached logits with cross-entropy and online epochs."""
    epochs = StudentEpochs(rig.context, rig.student(), rig.teacher, store, rig.views)
    device = rig.context.device
    return {
        "cached_seconds_over_cross_entropy": ratio(rounds, device, epochs.cached, epochs.cross_entropy),
        "cached_seconds_over_online": ratio(rounds, device, epochs.cached, epochs.online),
    }


def table(result: dict[str, Any]) -> str:
    """Return the ratios as Markdown, each beside what a loader and a cache without cost would give."""
    loader, bound = result["loader_over_one_batch"], result["parts"]["cached_over_online_bound"]
    rows = [
        *(
            (f"student's images/s with the loader ÷ the same step on one batch, {path}", loader[path], 1.0)
            for path in loader
        ),
        (
            "seconds of a KD epoch with stored logits ÷ a cross-entropy epoch",
            result["cached_seconds_over_cross_entropy"],
            1.0,
        ),
        (
            "seconds of a KD epoch with stored logits ÷ an online KD epoch",
            result["cached_seconds_over_online"],
            bound,
        ),
    ]
    lines = ["| measure | ratio | bound |", "|---|---|---|"]
    for name, found, least in rows:
        spread = f"{found['median']:.2f} [{found['min']:.2f}, {found['max']:.2f}]"
        lines.append(f"| {name} | {spread} | {least:.2f} |")
    for students, found in result["whole_job"]["by_students"].items():
        name = f"seconds of a whole job, dump included ÷ online, students: {students}"
        lines.append(f"| {name} | {found['cached_over_online']:.2f} | {found['bound']:.2f} |")
    return "\n".join(lines)


def measure(
    rig: Rig, parts: Costs, *, rounds: int, students: int, epochs: int, views: int
) -> dict[str, Any]:
    """Return all figures.

    Args:
        rig: teacher, students and settings.
        parts: costs of the parts.
        rounds: rounds per ratio.
        students: number of students of the whole job.
        epochs: epochs per student.
        views: views of the dump.
    """
    store = LogitStore.open(rig.dump("epochs", 2))
    shares, ratios = loader_shares(rig, store, rounds), epoch_ratios(rig, store, rounds)
    spent = whole_job(rig, students=students, epochs=epochs, views=views)
    return {
        "parts": {
            **asdict(parts),
            "teacher_over_student_forward": parts.teacher_forward / parts.student_forward,
            "teacher_over_student_flops": parts.teacher_flops / parts.student_flops,
            "cached_over_online_bound": parts.cached_over_online(),
        },
        "loader_over_one_batch": shares,
        **ratios,
        "whole_job": {
            "epochs": epochs,
            "views": views,
            "seconds": spent,
            "by_students": whole_costs(spent, parts, epochs=epochs, views=views),
        },
    }


def make_rig(
    context: RunContext, name: str, settings: TrainingSettings, folder: Path, teachers: tuple[str, ...]
) -> tuple[Rig, Costs]:
    """Choose a teacher for a student; return both in a rig, and their costs.

    Args:
        context: the data and the device.
        name: the student, one of `STUDENTS`.
        settings: the student's optimisation.
        folder: folder for dumps.
        teachers: names to choose from.
    """
    start = STUDENTS[name]
    student, learner = (
        untrained(context, name, start, settings.precision),
        Student(context, start, settings),
    )
    batch = next(make_loader(context, learner, VIEWS).epoch(0))
    teacher = choose_teacher(context, student, batch.images, teachers)
    rig = Rig(context=context, teacher=teacher, start=start, settings=settings, folder=folder)
    return rig, measured(teacher, student, learner, batch)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as .npz, instead of the built-in images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--student", choices=STUDENTS, default="mobilenet")
    parser.add_argument(
        "--teacher", choices=TEACHERS, help="instead of the one with ten times the student's forward time"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2, help="rendering threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--students", type=int, default=10, help="students of the whole job")
    parser.add_argument("--epochs", type=int, default=6, help="epochs per student of the whole job")
    parser.add_argument("--views", type=int, default=2, help="views of the whole job's dump")
    parser.add_argument("--quick", action="store_true", help="small trial run; its figures mean nothing")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print and save."""
    arguments = parsed()
    if arguments.quick:
        vars(arguments).update(images=256, rounds=1, students=2, epochs=1, views=1)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    settings = TrainingSettings(
        epochs=1, batch_size=arguments.batch_size, learning_rate=0.05, precision=arguments.precision
    )
    names = (arguments.teacher,) if arguments.teacher else tuple(TEACHERS)
    origin = f"npz:{arguments.cifar}" if arguments.cifar else "fashion-mnist-10k"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = open_source(origin, ImageOptions(root=folder))
        data = prepared(first_images(source, arguments.images), folder / "data", origin=origin)
        context = RunContext(data=data, task=find_task(), device=device, workers=arguments.workers)
        rig, parts = make_rig(context, arguments.student, settings, folder, names)
        sizes = {"students": arguments.students, "epochs": arguments.epochs, "views": arguments.views}
        result = {
            "environment": environment(),
            "student": arguments.student,
            "images": len(data.train),
            "batch_size": arguments.batch_size,
            "precision": arguments.precision,
            **measure(rig, parts, rounds=arguments.rounds, **sizes),
        }
    print(json.dumps(result["parts"], indent=1))
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
