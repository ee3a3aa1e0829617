"""Prove pyproject.toml's lower bounds: run a small job with the lowest allowed versions.

The packages are installed in a separate environment, in a temporary folder. torch and torchvision come
from the current environment, because a second copy takes gigabytes, so their bounds are not tested. dvc is
skipped: it calls the commands, which never import it, and needs newer versions of other packages. Extras
are installed without dependencies, which come from the current environment too.
Needs a package registry, as `pip install` finds it, and a few minutes. Called by `make lowest`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APART = ("torch", "torchvision", "dvc")
EXTRAS = ("timm", "export")
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9][0-9.]*)(,<[0-9][0-9.]*)?")

PARAMS = """
data: {source: "npz:tiny.npz", watch: tiny.npz, validation: 0.2}
training: {epochs: 1, batch_size: 16, learning_rate: 0.05, warmup_epochs: 0}
teachers: {tutor: {model: resnet20}}
dumps:
  main: {teacher: tutor, allow_poor_teacher: true, views: {count: 2, pad_crop: {padding: 1}, flip: random}}
students: {pupil: {model: resnet20}, small: {model: "timm:mobilenetv3_small_050"}}
recipes: {kd: {loss: kd}, scratch: {loss: scratch}}
sweep: {dumps: [main], students: [pupil], recipes: [kd], baselines: [scratch], seeds: [0]}
"""
STORE = "data/logits/main.zarr"
JOB = (
    ["prepare"],
    ["train-teacher", "tutor"],
    ["plan", "main"],
    ["cache-logits", "main"],
    ["cache-logits", "main", "--shards", "1/2"],
    ["train-student", "pupil", "kd", "0", "--dump", "main"],
    ["train-student", "pupil", "scratch", "0"],
    ["report"],
    ["inspect", STORE],
    ["verify", STORE, "--replay", "8"],
    ["train-student", "small", "scratch", "0"],
    ["export", "models/students/baseline-pupil-scratch-0.pt", "--format", "onnx", "--out", "pupil.onnx"],
)


def lowest_versions(pyproject: Path) -> dict[str, str]:
    """Return the lowest version of each dependency that a pyproject.toml names, without those apart.

    Raises:
        ValueError: a dependency has no plain lower bound.
    """
    lines = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    return {name: version for name, version in _bounds(pyproject, lines).items() if name not in APART}


def lowest_extras(pyproject: Path) -> dict[str, str]:
    """Return the lowest version of each package of the extras that commands import.

    Raises:
        ValueError: one has no plain lower bound.
    """
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    return _bounds(pyproject, [line for extra in EXTRAS for line in extras[extra]])


def _bounds(pyproject: Path, lines: Sequence[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        match = _BOUND.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{pyproject}: dependency {line!r}; expected NAME>=VERSION, or NAME>=VERSION,<NEXT"
            )
        found[match["name"]] = match["version"]
    return found


def main() -> None:
    """Make the environment and run the job in it."""
    versions, extras = lowest_versions(ROOT / "pyproject.toml"), lowest_extras(ROOT / "pyproject.toml")
    with tempfile.TemporaryDirectory(prefix="lowest-") as folder:
        python = make_environment(Path(folder) / "venv", versions, extras)
        require_versions(python, {**versions, **extras})
        run_job(python, Path(folder) / "job")
    print(f"lowest versions, {len(versions) + len(extras)} packages, ran {len(JOB)} commands: ok")


def make_environment(folder: Path, versions: Mapping[str, str], alone: Mapping[str, str]) -> Path:
    """Install these versions into a new environment, some of them alone; return its interpreter."""
    python = folder / "bin/python"
    if shutil.which("uv"):
        _call(["uv", "venv", "--quiet", "--python", sys.executable, folder])
        install = ["uv", "pip", "install", "--quiet", "--python", python]
    else:
        _call([sys.executable, "-m", "venv", folder])
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _call([*install, *_pins(versions)])
    _call([*install, "--no-deps", *_pins(alone)])
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    # Comes after the environment's own folder, so gives what that lacks: torch, and what torch needs.
    Path(own.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _pins(versions: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]


def require_versions(python: Path, versions: Mapping[str, str]) -> None:
    """Make sure that these versions are those that are imported, not the ones that torch came with."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = subprocess.check_output([python, "-c", code, *versions], text=True).split()
    for (name, expected), version in zip(versions.items(), found, strict=True):
        print(f"{name} {version}")
        if not f"{version}.0.0".startswith(f"{expected}."):
            raise SystemExit(
                f"{name} is {version}; expected {expected}, the lowest that pyproject.toml allows"
            )


def run_job(python: Path, folder: Path) -> None:
    """Run every command of the job on a few images of noise."""
    folder.mkdir()
    (folder / "params.yaml").write_text(PARAMS)
    _call([python, "-c", _MAKE_DATA], cwd=folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command in JOB:
        _call([python, "-c", "from stages.cli import main; main()", *command], cwd=folder, env=environment)


_MAKE_DATA = """
import numpy as np
labels = np.arange(120) % 3
images = np.random.default_rng(0).integers(0, 60, (120, 12, 12, 3)) + 60 * labels[:, None, None, None]
images = images.astype(np.uint8)
test = {"test_images": images[:30], "test_labels": labels[:30]}
np.savez("tiny.npz", train_images=images, train_labels=labels, **test)
"""


def _call(command: Sequence[object], **options: object) -> None:
    subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
