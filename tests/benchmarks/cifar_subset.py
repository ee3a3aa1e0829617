"""The CIFAR-10 of the losses' tables: 10,000 training images, and a teacher trained on all 50,000.

    python -m tests.benchmarks.cifar_subset CIFAR10.npz SUBSET

Writes SUBSET/images.npz, the first 10,000 training images and all test images, and
SUBSET/teacher.safetensors, a ResNet-20 after six epochs. What is there is kept. The validation images of
the tables are a tenth of the subset, and the teacher has seen them: they rank settings of losses, which all
have this teacher, and their top-1 is not told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tests.benchmarks.project import Project

PARAMS = Path(__file__).with_name("loss_table.yaml")
TRAINED = 10_000
EPOCHS = 6
_CROPS = "views.pad_crop={padding: 4}"


def changed(subset: Path | None) -> list[str]:
    """Return the parameters of the losses' tables that differ on a subset; none for the built-in images."""
    if subset is None:
        return []
    root = subset.resolve()
    return [
        f"data.source=npz:{root / 'images.npz'}",
        f"teachers.main={{model: resnet20, weights: {root / 'teacher.safetensors'}}}",
        f"training.{_CROPS}",
        f"dumps.main.{_CROPS}",
    ]


def make(npz: Path, subset: Path) -> None:
    """Write the images and the teacher that are missing."""
    subset.mkdir(parents=True, exist_ok=True)
    if not (images := subset / "images.npz").exists():
        with np.load(npz) as whole:
            parts = {name: whole[name] for name in whole}
        first = {name: part[:TRAINED] if name.startswith("train") else part for name, part in parts.items()}
        np.savez(images, **first)
    overrides = [
        f"data.source=npz:{npz.resolve()}",
        f"teachers.main={{model: resnet20, epochs: {EPOCHS}}}",
        f"training.{_CROPS}",
    ]
    Project(subset / "project", PARAMS, overrides).keep_teacher("main", subset / "teacher.safetensors")


def main() -> None:
    """Make the subset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("subset", type=Path)
    options = parser.parse_args()
    make(options.npz, options.subset)


if __name__ == "__main__":
    main()
