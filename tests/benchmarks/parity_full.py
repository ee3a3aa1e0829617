"""Parity at an accuracy that people respect: cached against online labels on all 50,000 images of CIFAR-10.

    python -m tests.benchmarks.parity_full CIFAR10.npz FOLDER [--pairs 8] [--seeds 3] [--epochs 40]
        [--device cuda] [--minutes M] [--unit-minutes M] [--checkpoint FILE] [--set KEY.PATH=VALUE ...]
        [--out FILE.json]

The arms of parity.py, with a teacher above 90 % (WRN-16-2, 20 epochs) and students of 78 k parameters
(ResNet-8) that train for 40 epochs on shifts and flips:

* online: the teacher in the loop, on fresh views in every epoch;
* cached: as many stored views as epochs; cached V=4, cached V=1: fewer, cycled;
* mistake: logits of the un-augmented image, while the student sees shifts and flips;
* scratch: cross-entropy without a teacher.

Weights and order at the start are equal within a seed. Seeds beyond --seeds, up to --pairs, run `online`,
`cached` and `cached V=4` alone. Units: the teacher, the dump, then each (arm, seed); all are under an hour
on two cores. Printed are means with standard errors, differences to `online` paired by seed with their 95 %
t intervals, and the error of the comparison. Figures are the top-1 of the last epoch on the 10,000 test
images. Students of 94 % need a GPU:

    python -m tests.benchmarks.parity_full CIFAR10.npz FOLDER --device cuda --epochs 60 \\
        --set students.student.model=resnet18 --set teachers.trained.model=wrn_40_2 \\
        --set teachers.teacher.model=wrn_40_2 --set teachers.trained.epochs=60 --out parity_resnet18.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch
from torch import nn

from pipeline.core.trust import Trust
from pipeline.evaluation.context import RunContext
from pipeline.losses import make_loss
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import ModelCard, load_checkpoint
from pipeline.models.pretrained import initial_network
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from stages import paths
from stages.params_file import load_params
from stages.runtime import bound_threads, default_workers, keep_freed_memory
from tests.benchmarks.converged import interval
from tests.benchmarks.parity import BEST, MISTAKE, ONLINE, Arm, make_arms
from tests.benchmarks.project import Project, Run
from tests.benchmarks.rig import Rig
from tests.benchmarks.small_students import figure, summary
from tests.benchmarks.units import DUMP, TEACHER, Job, make_parser

PARAMS = Path(__file__).with_suffix(".yaml")
FEW_VIEWS = (4, 1)
PAIRED = (ONLINE, BEST, "cached V=4")
ARMS = (*PAIRED, "cached V=1", MISTAKE, "scratch")
MOST_PAIRS = 10


def wanted_runs(epochs: int, pairs: int, seeds: int) -> list[Run]:
    """Return the units in the order of work: teacher, dump, then arms, seed by seed."""
    arms = [(arm, seed) for seed in range(max(pairs, seeds)) for arm in (ARMS if seed < seeds else PAIRED)]
    every = [("teacher", 0), ("dump", 0), *arms]
    return [{"arm": arm, "epochs": epochs, "seed": seed} for arm, seed in every]


def open_rig(project: Project, device: torch.device, *, recipe: str = "kd") -> Rig:
    """Return prepared data, teacher and settings of a project, in which the teacher is ready.

    Args:
        project: the folder and its parameters.
        device: of teacher and students.
        recipe: name of the students' loss and of its settings, which are its defaults.
    """
    params = load_params(project.params, project.overrides)
    dump, spec = params.dump(DUMP), params.student("student")
    views = dump.views.spec
    assert isinstance(views, ViewSpec)
    data = PreparedData.open(project.folder / paths.PREPARED)
    trust = Trust(code=frozenset({params.teacher(TEACHER).model}))
    network, card = load_checkpoint(project.folder / paths.teacher_checkpoint(TEACHER), trust=trust)

    def start(seed: int) -> tuple[nn.Module, ModelCard]:
        return initial_network(data, spec.start(params.data.options.size), seed)

    eyes = start(0)[1].preprocessing
    assert isinstance(eyes, Preprocessing)

    return Rig(
        context=RunContext(data=data, task=find_task(data.task), device=device, workers=default_workers()),
        teacher=Teacher(name=TEACHER, network=placed(network, device), card=card, precision=dump.precision),
        views=views,
        student=lambda seed: placed(start(seed)[0], device),
        settings=spec.training.settings(),
        loss=make_loss(recipe, {}),
        folder=project.folder,
        preprocessing=eyes,
    )


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, channels-last."""
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def open_arms(project: Project, device: torch.device) -> dict[str, Arm]:
    """Return per arm a function that trains a student with a seed and returns its top-1."""
    rig = open_rig(project, device)
    store = functools.cache(lambda: LogitStore.open(project.folder / paths.store(DUMP)))
    return make_arms(rig, rig.feed(rig.views), store, [rig.settings.epochs, *FEW_VIEWS])


class Units:
    """What each unit of a job does.

    Args:
        job: the folder and its parameters.
        device: of teacher and students.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job = job
        self._arms = functools.cache(lambda: open_arms(job.project, device))

    def make(self, run: Run) -> Run:
        """Do one unit, with the work of earlier ones that this folder lacks."""
        arm = run["arm"]
        if arm == "teacher":
            return self._job.teacher()
        if arm == "dump":
            return self._job.dump()
        self._job.ready(dump=arm.startswith(BEST))
        return {"top1": self._arms()[arm](run["seed"])}


def table(runs: Sequence[Run]) -> str:
    """Return top-1 by arm and the paired differences to `online` as Markdown, then what was reached."""
    runs = sorted(runs, key=itemgetter("seed"))
    top1 = {arm: [run["top1"] for run in runs if run["arm"] == arm] for arm in ("teacher", *ARMS)}
    if not top1[ONLINE]:
        return "no online student yet"
    found = summary({arm: top1[arm] for arm in ARMS if top1[arm]}, ONLINE)
    lines = ["| labels | top-1 | − online, paired | 95 % interval | seeds |", "|---|---|---|---|---|"]
    for arm, row in found.items():
        gain, between = "", ""
        if arm != ONLINE:
            gain = figure(row["difference"], row["difference_standard_error"], signed=True)
            between = _interval(top1[arm], top1[ONLINE])
        mean = figure(row["mean"], row["standard_error"])
        lines.append(f"| {arm} | {mean} | {gain} | {between} | {row['seeds']} |")
    return "\n".join([*lines, "", reached(found, top1["teacher"])])


def _interval(top1: Sequence[float], online: Sequence[float]) -> str:
    """Return the 95 % t interval of paired differences in points; empty for one pair."""
    paired = [100 * (own - other) for own, other in zip(top1, online, strict=False)]
    if len(paired) < 2:
        return ""
    mean, _, half = interval(paired)
    return f"{mean - half:+.2f} to {mean + half:+.2f}"


def reached(found: dict[str, dict[str, float]], teacher: Sequence[float]) -> str:
    """Return a sentence with the accuracy and the error that the comparison reached."""
    of_teacher = "".join(f", their teacher {100 * top1:.2f} %" for top1 in teacher)
    errors = [
        f"{arm}: ± {row['difference_standard_error']:.2f} after {row['seeds']} pairs"
        for arm, row in found.items()
        if arm in PAIRED[1:] and row["seeds"] > 1
    ]
    told = f"Standard errors of the difference in points, {'; '.join(errors)}." if errors else ""
    return f"Online students reach {found[ONLINE]['mean']:.2f} %{of_teacher}. {told}".rstrip()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__, "parity_full")
    parser.add_argument("--pairs", type=int, default=8, choices=range(1, MOST_PAIRS + 1))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, MOST_PAIRS + 1))
    parser.add_argument(
        "--epochs", type=int, default=40, help="of the students; also the views of the dump"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the missing units, as far as the time goes, and print the table."""
    given = parsed(arguments)
    if given.device == "cpu":
        keep_freed_memory()
        bound_threads()
    lengths = [f"training.epochs={given.epochs}", f"dumps.{DUMP}.views.count={given.epochs}"]
    job = Job(given, PARAMS, lengths)
    wanted = wanted_runs(given.epochs, given.pairs, given.seeds)
    print(table(job.run(wanted, Units(job, torch.device(given.device)).make, kind="arm")))


if __name__ == "__main__":
    main()
