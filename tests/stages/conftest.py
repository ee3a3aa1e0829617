"""A small project that went through the first two stages, made once and copied for each test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml

from stages.cli import main
from tests.stages import dvc_projects
from tests.stages.forks import Forks
from tests.stages.projects import Projects

SIZE, CLASSES, VIEWS = 16, 4, 3
PARAMS = {
    "data": {"source": "npz:data.npz", "watch": "data.npz", "image_size": None, "channels": 3}
    | {"root": "data/raw", "validation": 0.2, "seed": 0, "short_side": None, "keep": "pixels"},
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "warmup_epochs": 1}
    | {"views": {"seed": 3, "pad_crop": {"padding": 2}, "flip": "random"}},
    "teachers": {"tutor": {"model": "resnet8", "epochs": 4}},
    "dumps": {
        "main": {"teacher": "tutor", "codec": "affine8", "batch_size": 16, "shard_rows": 40}
        | {"views": {"count": VIEWS, "seed": 3, "random_resized_crop": {}, "flip": "random"}}
    },
    "students": {"pupil": {"model": "resnet8"}},
    "recipes": {
        "scratch": {"loss": "scratch"},
        "label_smoothing": {"loss": "label_smoothing"},
        "kd": {"loss": "kd"},
    },
    "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["kd"]}
    | {"baselines": ["scratch"], "seeds": [0]},
}


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let commands be interrupted also where the tests run as a background job, which ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that name themselves: red and green are the sample's number, blue a texture.

    The texture's brightness is the class, so that a small network learns it in seconds.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    numbers = np.arange(count) + 100 * seed
    images[..., 0] = (numbers % 16 * 8 + 100)[:, None, None]
    images[..., 1] = (numbers // 16 * 4)[:, None, None]
    texture = generator.integers(0, 40, (count, SIZE, SIZE))
    images[..., 2] = texture + labels[:, None, None] * 60
    return images, labels


def write_images(folder: Path, count: int) -> None:
    """Write data.npz with so many training images; those of a smaller number are among them."""
    train, test = make_images(count, 0), make_images(40, 1)
    arrays = {"train_images": train[0], "train_labels": train[1]}
    np.savez(folder / "data.npz", **arrays, test_images=test[0], test_labels=test[1])


def write_pictures(folder: Path) -> None:
    """Write the images of data.npz as PNG files in folders of classes."""
    for split, (images, labels) in {"train": make_images(100, 0), "test": make_images(40, 1)}.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "photos" / split / f"class-{label}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            torchvision.io.write_png(torch.from_numpy(image).permute(2, 0, 1), str(path))


def begin(folder: Path) -> None:
    """Write data and parameters of a small project."""
    write_images(folder, 100)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))


def run(*arguments: object) -> int:
    """Run a command in this process and return its exit status; `main` handles SIGTERM meanwhile."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data, prepared and with a trained teacher."""
    folder = tmp_path_factory.mktemp("project")
    begin(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("prepare") == 0
        assert run("train-teacher", "tutor") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="session")
def dvc_template(preloaded: None, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of Git with data, teacher and dump that DVC made; all is committed."""
    folder = tmp_path_factory.mktemp("dvc") / "repository"
    dvc_projects.lay_out(folder, template / "data.npz", PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dvc_projects.call("git", "init", "-q")
        dvc_projects.call("dvc", "repro", "cache-logits@main")
        dvc_projects.commit("dump")
    return folder


@pytest.fixture
def dumped_by_dvc(dvc_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that repository, which is the working folder."""
    folder = tmp_path / "repository"
    shutil.copytree(dvc_template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, which is the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def edit() -> Callable[..., None]:
    """Edit params.yaml of the working folder: edit({"data": {"seed": 1}}) merges deeply."""

    def merge(base: dict, change: dict) -> None:
        for key, value in change.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merge(base[key], value)
            else:
                base[key] = value

    def apply(change: dict) -> None:
        path = Path("params.yaml")
        params = yaml.safe_load(path.read_text())
        merge(params, change)
        path.write_text(yaml.safe_dump(params))

    return apply


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that runs commands in forks."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def projects(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Projects:
    """Small projects after any steps."""
    return Projects(forks, tmp_path_factory.mktemp("projects"), begin)
