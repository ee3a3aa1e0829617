"""`pipeline init`: a project for a folder of photographs, or one clear line and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.modalities.table import find_modality
from pipeline.samples.description import read_description
from stages.params_file import load_params
from stages.render import stages_of
from tests import patience
from tests.stages.conftest import run
from tests.stages.dvc_projects import ENVIRONMENT, ROOT

pytestmark = pytest.mark.usefixtures("preloaded")

WRITTEN = ("params.yaml", "dvc.yaml", ".gitignore", ".dvc", ".dvcignore")
STAGES = [
    "cache-logits@main",
    "prepare",
    "report",
    "train-baseline@student-scratch-0",
    "train-student@main-student-kd-0",
    "train-teacher@teacher",
]
COLOURS = {"amber": (250, 180, 30), "jade": (20, 160, 90), "rosé wine": (240, 60, 130)}
PHOTOS = "my photos, ü"


def take_photos(folder: Path, each: int = 20, splits: tuple[str, ...] = ("",), **size: int) -> Path:
    """Write noisy pictures of three colours into folders of classes."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(each):
                shape = (size.get("height", 70 + number), size.get("width", 100), 3)
                pixels = np.clip(np.array(colour) + rng.integers(-40, 40, shape), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"IMG {number:03}.jpg")
    return folder


def content(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(autouse=True, scope="module")
def _nothing_downloaded(tmp_path_factory) -> Iterator[None]:
    """No pretrained weights, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A project of `pipeline init`, made once, to be read only; the photographs lie beside it."""
    folder = tmp_path_factory.mktemp("begun")
    take_photos(folder / PHOTOS)
    (folder / "project").mkdir()
    before = Path.cwd()
    os.chdir(folder / "project")
    try:
        assert run("init", f"../{PHOTOS}") == 0
    finally:
        os.chdir(before)
    return folder / "project"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here, capsys):
    """Check that a folder is refused in one line, and nothing is written."""

    def check(folder: object, *parts: str) -> None:
        before = content(here)
        assert run("init", folder) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("pipeline: ")
        for part in parts:
            assert part in error
        assert content(here) == before

    return check


def asked(project: Path, *command: str) -> str:
    """Return what DVC says of a project; it reads dvc.yaml and params.yaml for that, and runs nothing."""
    done = patience.call(["dvc", *command], cwd=project, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_written_is_a_project(begun):
    assert {path.name for path in begun.iterdir()} == set(WRITTEN)
    params = load_params(begun / "params.yaml")
    assert (params.data.source, params.data.watch) == (f"folder:../{PHOTOS}", f"../{PHOTOS}")
    assert (params.data.options.image_size, params.data.options.short_side) == (64, None)
    assert "no_scm = True" in (begun / ".dvc/config").read_text()
    assert sorted(asked(begun, "stage", "list", "--name-only").split()) == STAGES


def test_prepare_finds_what_init_counted(begun, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    photos = begun.parent / PHOTOS
    source = f"data.source=folder:{photos}"
    assert run("prepare", "--params", begun / "params.yaml", "--set", source) == 0
    samples = read_description(Path("data/prepared")).samples
    summary = (begun / "params.yaml").read_text().splitlines()[0]
    assert f"3 classes; train {samples['train']}, test {samples['test']} images" in summary
    assert samples["train"] + samples["test"] == 60
    share = f"{samples['test']} of 60 images ({samples['test'] / 60:.0%})"
    assert f"no test split; {share} are drawn for it, each with a chance of 20%" in capsys.readouterr().err


def test_it_says_what_comes_next(here, tmp_path, capsys):
    take_photos(tmp_path / "photos", each=4, splits=("train", "val", "test"))
    assert run("init", tmp_path / "photos") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].endswith("next: dvc repro")
    assert "validation 12, test 12 images" in told.out
    assert f"\n{tmp_path / 'photos'}: teacher: " in told.out
    assert "test split" not in told.err
    assert Path(load_params(here / "params.yaml").data.watch).is_absolute()


def test_in_a_repository_of_git_photographs_are_ignored(here):
    subprocess.run(["git", "init", "-q"], check=True)
    take_photos(here / "inner" / "photos #1 ", each=2, height=28, width=28)
    assert run("init", "inner/photos #1 ") == 0
    assert "no_scm" not in (here / ".dvc/config").read_text()
    ignored = subprocess.run(
        ["git", "status", "--short", "-uall"], check=True, capture_output=True, text=True
    )
    assert "photos" not in ignored.stdout
    assert "pad_crop: {padding: 3}" in (here / "params.yaml").read_text()


def test_in_a_folder_of_a_repository_of_git(here, monkeypatch):
    subprocess.run(["git", "init", "-q"], check=True)
    take_photos(here / "photos", each=2)
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    assert run("init", "../photos") == 0
    assert "no_scm" not in Path(".dvc/config").read_text()
    assert sorted(asked(here / "sub", "stage", "list", "--name-only").split()) == STAGES


@pytest.mark.parametrize("there", [WRITTEN, (".gitignore",), ("dvc.yaml", ".dvc")])
def test_nothing_is_overwritten(here, refused, tmp_path, there):
    for name in there:
        (here / name).mkdir() if name == ".dvc" else (here / name).write_text("mine")
    take_photos(tmp_path / "photos", each=2)
    refused(
        tmp_path / "photos", f"{', '.join(there)}: already in", "nothing is overwritten; move them away"
    )
    assert all((here / name).read_text() == "mine" for name in there if name != ".dvc")


def test_a_folder_that_is_none_is_refused(refused, here):
    refused("../none", "../none: no such folder", "correct the path")
    (here / "photo.jpg").write_bytes(b"")
    refused("photo.jpg", "photo.jpg: not a folder")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has 0 images and no class folders; expected train/CLASS/*"),
        (["a.jpg", "b.jpg"], "has 2 images and no class folders; expected train/CLASS/*"),
        (["a.jpg"], "move the images of each class into a folder of its name"),
        (["cats/a.pdf", "dogs/b.pdf"], "no image files in class folders, left out: 2 files (.pdf 2)"),
        (["cats/a.jpg", "dogs/b.txt"], "dogs: a class folder without images, left out: 1 file (.txt 1)"),
        (["cats/a.jpg", "cats/deep/b.jpg", "cats/c.jpg"], "has 1 class; expected at least two"),
        (["cats/a.jpg", "dogs/b.jpg"], "no test images"),
        (["val/cats/a.jpg", "val/dogs/b.jpg"], "move the classes into train/"),
        (["train/cats/a.jpg", "train/dogs/b.jpg"], "train as the source"),
    ],
)
def test_folders_that_make_no_dataset_are_refused(refused, tmp_path, names, message):
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    refused(tmp_path / "photos", message)


@pytest.mark.parametrize("folder", [".", "..", "data", "data/logits/x", "reports"])
def test_photographs_and_outputs_lie_apart(refused, here, folder):
    take_photos(here / folder, each=1)
    refused(folder, "run the command in a new folder")


def test_another_project_of_dvc_around_is_refused(refused, here, tmp_path):
    (tmp_path / ".dvc").mkdir()
    take_photos(here / "photos", each=1)
    refused("photos", f"is inside {tmp_path}, which is another DVC project")


def test_files_that_are_no_images_are_told(here, tmp_path, capsys):
    take_photos(tmp_path / "photos", each=8)
    for name in COLOURS:
        (tmp_path / "photos" / name / "IMG 000.jpg").write_bytes(b"no image")
    (tmp_path / "photos/loose.jpg").write_bytes(b"")
    assert run("init", tmp_path / "photos") == 0
    told = capsys.readouterr().err
    assert "have no image header: " in told
    assert "left out: 1 loose in photos/" in told


def test_templates_are_the_files_of_this_repository():
    assert stages_of(find_modality()) == (ROOT / "dvc.yaml").read_text()
    assert (ROOT / "stages/templates/dvcignore").read_text() == (ROOT / ".dvcignore").read_text()


def test_an_ensemble_watches_each_of_its_members(begun, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text((begun / name).read_text())
    tree = yaml.safe_load((begun / "params.yaml").read_text())
    tree["data"]["watch"] = str(begun.parent / PHOTOS)
    tree["dumps"] |= dict.fromkeys(("second", "third"), tree["dumps"]["main"])
    tree["ensembles"] = {"all": {"of": ["main", "second", "third"]}}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    before = asked(project, "dag", "--dot", "average-logits@all")
    for name in ("main", "second", "third"):
        assert f'"cache-logits@{name}" -> "manifest@all-{name}"' in before
        assert f'"manifest@all-{name}" -> "average-logits@all"' in before


@pytest.mark.slow
def test_the_project_runs(tmp_path):
    """All of it, as a user would; with fewer epochs."""
    take_photos(tmp_path / PHOTOS)
    project = tmp_path / "project"
    project.mkdir()
    for arguments in (["pipeline", "init", f"../{PHOTOS}"], ["dvc", "repro"]):
        done = patience.call(arguments, cwd=project, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
        params = project / "params.yaml"
        params.write_text(params.read_text().replace("epochs: 64", "epochs: 16"))
    results = json.loads((project / "reports/results.json").read_text())
    assert {run["recipe"]: run["top1"] > 0.6 for run in results["students"]} == {
        "kd": True,
        "scratch": True,
    }
