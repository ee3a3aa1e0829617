"""A command that is killed before any change of the file system ends, run again, as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.dump.spec import splits_of
from pipeline.dump.verify import verify
from pipeline.modalities.prepared import PreparedData
from pipeline.store.reader import LogitStore
from tests.pipeline.store.older import to_schema_3
from tests.stages.conftest import write_images, write_pictures
from tests.stages.forks import Forks
from tests.stages.projects import DUMPED, MADE, TRAINED, Projects, Step, differing

STORE = "data/logits/main.zarr"
# Kills per scenario by default; with -m slow, two before every change of the file system.
SAMPLED = 1
KILLED = -9


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    change(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def views(count: int) -> Callable[[Path], None]:
    """Return a step that asks for so many views."""

    def step(folder: Path) -> None:
        edited(folder, lambda params: params["dumps"]["main"]["views"].update(count=count))

    return step


MORE_VIEWS = views(5)
# A growth of which half is done is given up in part: what is beyond waits for the next one.
NARROWED = (views(6), "cache-logits main --shards 0/2", views(4))


def more_images(folder: Path) -> None:
    write_images(folder, 120)


def image_files(folder: Path) -> None:
    """Take the images from files, which are kept as they are."""
    write_pictures(folder)
    source = {"source": "folder:photos", "watch": "photos", "keep": "encoded"}
    edited(folder, lambda params: params["data"].update(source))


def second_dump(folder: Path) -> None:
    def change(params: dict[str, Any]) -> None:
        params["dumps"]["other"] = {**params["dumps"]["main"], "precision": "bf16"}
        params["ensembles"] = {"both": {"of": ["main", "other"]}}

    edited(folder, change)


def features(folder: Path) -> None:
    """Let the dump keep features, and define a probe on it."""

    def change(params: dict[str, Any]) -> None:
        params["dumps"]["main"].update(codec="features", max_kl=1e-6)
        params["probes"] = {"new": {"of": "main", "max_kl": 1}}

    edited(folder, change)


def texts(folder: Path) -> None:
    """Take texts from a table."""
    lines = [f"wave {n} salt ship,sea\ntree {n} moss,wood" for n in range(40)]
    (folder / "notes.csv").write_text("\n".join(["text,label", *lines]))

    def change(params: dict[str, Any]) -> None:
        params["data"] = {"modality": "text", "source": "csv:notes.csv", "validation": 0.2}
        params["training"]["views"], params["dumps"]["main"]["views"] = {"seed": 3}, {"seed": 3, "count": 2}

    edited(folder, change)


def older(folder: Path) -> None:
    """Make the store one of schema 3."""
    to_schema_3(folder / STORE, splits_of(PreparedData.open(folder / "data/prepared")))


def damage(folder: Path) -> None:
    manifest = json.loads((folder / STORE / "manifest.json").read_text())
    catalogue = f"catalogues/{manifest['catalogues']['train.v00000.b00000']}"
    for name in ("train/codes/c/1/0/0", "train/keys/c/0", "test/codes/zarr.json", catalogue):
        file = folder / STORE / name
        changed = bytearray(file.read_bytes())
        changed[len(changed) // 2] ^= 1
        file.write_bytes(changed)


def damage_shard(folder: Path) -> None:
    (folder / STORE / "train/codes/c/1/0/0").write_bytes(b"damaged")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command, and what comes before it; `readable` says how many views a reader finds after a kill."""

    command: str
    before: tuple[Step, ...] = ()
    readable: tuple[int, ...] | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.before, self.command)


DUMP = "cache-logits main"
HALVES = tuple(f"{DUMP} --shards {part}/2" for part in (0, 1))
EXPORT = "export models/teachers/tutor.pt --format pt2 --out tutor.pt2"
SCENARIOS = {
    "prepare": Scenario(command="prepare"),
    "prepare-more-images": Scenario(command="prepare", before=("prepare", more_images)),
    "prepare-encoded": Scenario(command="prepare", before=(image_files,)),
    "prepare-texts": Scenario(command="prepare", before=(texts,)),
    "teacher": Scenario(command="train-teacher tutor", before=("prepare",)),
    "dump": Scenario(command=DUMP, before=MADE),
    "second-half": Scenario(command=HALVES[1], before=(*MADE, HALVES[0])),
    "joined": Scenario(command=DUMP, before=(*MADE, *HALVES)),
    "more-views": Scenario(command=DUMP, before=(*DUMPED, MORE_VIEWS), readable=(3, 5)),
    "fewer-views": Scenario(command=DUMP, before=(*DUMPED, *NARROWED), readable=(3, 4)),
    "more-images": Scenario(command=DUMP, before=(*DUMPED, more_images, "prepare"), readable=(3,)),
    "repair": Scenario(command=f"verify {STORE} --repair", before=(*DUMPED, damage)),
    "upgrade": Scenario(command=f"verify {STORE} --upgrade", before=(*DUMPED, older), readable=(3,)),
    "older-more-views": Scenario(command=DUMP, before=(*DUMPED, older, MORE_VIEWS), readable=(3, 5)),
    "older-repair": Scenario(command=f"verify {STORE} --repair", before=(*DUMPED, older, damage_shard)),
    "student": Scenario(command="train-student pupil kd 0 --dump main", before=DUMPED),
    "baseline": Scenario(command="train-student pupil scratch 0", before=DUMPED),
    "ensemble": Scenario(command="cache-logits both", before=(*DUMPED, second_dump, "cache-logits other")),
    "probe": Scenario(command="cache-logits new", before=(features, *DUMPED)),
    "export-logits": Scenario(command="export-logits main --format wds --out tars", before=DUMPED),
    "report": Scenario(command="report", before=TRAINED),
    "export": Scenario(command=EXPORT, before=MADE),
}


def kill_and_resume(
    forks: Forks, projects: Projects, scenario: Scenario, folder: Path, kill_before: int, *, torn: bool
) -> None:
    """Kill a scenario's command, look at what is readable, run it again and compare the whole folder."""
    before = projects.after(*scenario.before)
    shutil.copytree(before, folder)
    status, said = forks.run(folder, *scenario.command.split(), kill_before=kill_before, torn=torn)
    # Threads may make fewer changes than they made before.
    assert status in (KILLED, 0), said
    if scenario.readable is not None:
        complete, found = (LogitStore.open(place / STORE) for place in (before, folder))
        assert found.n_views in scenario.readable
        for view in range(complete.n_views):
            assert (found.view(view)[: len(complete.view(view))] == complete.view(view)).all()
        assert verify(folder / STORE).bad == []
    status, said = forks.run(folder, *scenario.command.split())
    assert status == 0, said
    assert differing(folder, projects.after(*scenario.steps)) == []
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", SCENARIOS)
def test_some_kills_leave_no_trace(forks, projects, tmp_path, name):
    changes = projects.changes(*SCENARIOS[name].steps)
    generator = random.Random(name)
    for kill_before in generator.sample(range(1, changes + 1), min(SAMPLED, changes)):
        torn = generator.random() < 0.5
        kill_and_resume(forks, projects, SCENARIOS[name], tmp_path / "killed", kill_before, torn=torn)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_kill_leaves_a_trace(forks, projects, tmp_path, name):
    changes, failed = projects.changes(*SCENARIOS[name].steps), []
    for kill_before in range(1, changes + 1):
        for torn in (False, True):
            folder = tmp_path / f"{kill_before}{'-torn' * torn}"
            try:
                kill_and_resume(forks, projects, SCENARIOS[name], folder, kill_before, torn=torn)
            except Exception as error:
                failed.append(f"{folder.name}: {str(error)[:300]}")
    print(f"{name}: {2 * changes} kills, before each of {changes} changes: {len(failed)} left a trace")
    assert not failed, "\n".join(failed)
