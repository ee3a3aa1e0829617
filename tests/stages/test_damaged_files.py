"""Random damage to any file that a command reads: it is refused in one line, or changes nothing."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.stages.forks import Forks
from tests.stages.projects import DUMPED, MADE, TRAINED, Step, content
from tests.stages.test_kills import features

STORE = "data/logits/main.zarr"
SHORT, LONG = 4, 300


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A command that reads files.

    Args:
        command: with its arguments.
        reads: patterns of the files that are damaged.
        makes: how the names of what it makes begin; without any, what it says is compared.
        after: what comes before it.
        tells: words with which it says what is missing, and goes on without.
        always: whether it finds any damage.
    """

    command: str
    reads: tuple[str, ...]
    makes: tuple[str, ...] = ()
    after: tuple[Step, ...] = DUMPED
    tells: str | None = None
    always: bool = False


PREPARED, TEACHERS = "data/prepared/**/*", "models/teachers/*"
READERS = {
    "dump": Reader(
        command="cache-logits main --out again.zarr", reads=(PREPARED, TEACHERS), makes=("again.zarr",)
    ),
    "student": Reader(
        command="train-student pupil kd 0 --dump main",
        reads=(f"{STORE}/**/*", TEACHERS),
        makes=("models/students", "runs/main"),
    ),
    "report": Reader(
        command="report",
        reads=("runs/*/*", f"{STORE}/**/*", PREPARED),
        makes=("reports",),
        after=TRAINED,
        tells="because its logits are not on this machine",
    ),
    "probe": Reader(
        command="cache-logits new",
        reads=(PREPARED, f"{STORE}/**/*"),
        makes=("data/logits/new.zarr",),
        after=(features, *DUMPED),
    ),
    "export-logits": Reader(
        command="export-logits main --format wds --out tars",
        reads=(PREPARED, f"{STORE}/**/*"),
        makes=("tars",),
    ),
    "verify": Reader(command=f"verify {STORE}", reads=(f"{STORE}/**/*",), always=True),
    "verify-data": Reader(command="verify --data", reads=(PREPARED,), always=True),
    "inspect": Reader(
        command=f"inspect {STORE}", reads=(f"{STORE}/*.json*",), tells="NOT complete; resume with"
    ),
    "plan": Reader(command="plan main --json", reads=(PREPARED, TEACHERS, f"{STORE}/**/*")),
    "export": Reader(
        command="export models/teachers/tutor.pt --format pt2 --out tutor.pt2",
        reads=(TEACHERS, PREPARED),
        makes=("tutor.pt2",),
        after=MADE,
    ),
}


def damage(file: Path, generator: random.Random) -> str:
    """Damage a file in one way; return which."""
    before = file.read_bytes()
    kind = generator.choice(["flip", "flip", "truncate", "empty", "delete", "append"])
    if kind == "flip" and before:
        changed = bytearray(before)
        changed[generator.randrange(len(before))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
    elif kind == "truncate" and before:
        file.write_bytes(before[: generator.randrange(len(before))])
    elif kind == "append":
        file.write_bytes(before + generator.randbytes(1 + generator.randrange(100)))
    elif kind == "delete":
        file.unlink()
    else:
        file.write_bytes(b"")
    return kind


def result_of(forks: Forks, folder: Path, reader: Reader) -> dict[str, Any] | str:
    """Return what a command says and leaves behind, or with which words it refuses."""
    status, said = forks.run(folder, *reader.command.split())
    assert status in (0, 1), said
    assert "Traceback" not in said, said
    if status:
        last = said.splitlines()[-1]
        found = r"pipeline: .+|.+ files checked, .*[1-9][0-9]* bad(; next: pipeline .+)?"
        assert re.fullmatch(found, last), said
        return last
    if reader.tells is not None and reader.tells in said:
        return reader.tells
    if not reader.makes:
        return {"": unmeasured(said)}
    return content(folder, reader.makes)


def unmeasured(said: str) -> list[str]:
    """Return a command's lines without measured times, memory and free disk."""
    return [
        line for line in said.splitlines() if not re.search("_seconds|seconds_|memory_|disk_free", line)
    ]


@pytest.mark.parametrize(
    "count", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_or_changes_nothing(forks, projects, tmp_path, name, count):
    reader = READERS[name]
    expected = result_of(forks, projects.after(*reader.after, lambda folder: None), reader)
    assert isinstance(expected, dict), expected
    generator, refused = random.Random(count), 0
    for number in range(count):
        folder = tmp_path / "damaged"
        shutil.copytree(projects.after(*reader.after), folder)
        files = sorted(file for names in reader.reads for file in folder.glob(names) if file.is_file())
        file = generator.choice(files)
        before = file.read_bytes()
        kind = damage(file, generator)
        result = result_of(forks, folder, reader)
        refused += isinstance(result, str)
        told = f"{number}: {kind} in {file.relative_to(folder)}"
        assert isinstance(result, str) or result == expected, told
        if reader.always and not (file.exists() and file.read_bytes().strip() == before.strip()):
            assert isinstance(result, str), f"{told} was not found"
        shutil.rmtree(folder)
    print(f"{name}: {count} damages, {refused} refused, the others changed nothing")
    assert refused


@pytest.mark.parametrize("name", ["test/codes/c/0/0/0", "test/keys/c/0"])
def test_a_student_needs_the_logits_of_the_test_images_before_it_is_trained(
    projects, forks, tmp_path, name
):
    folder = tmp_path / "project"
    shutil.copytree(projects.after(*DUMPED), folder)
    (folder / "data/logits/main.zarr" / name).unlink()
    status, said = forks.run(folder, "train-student", "pupil", "kd", 0, "--dump", "main")
    assert status == 1
    assert name in said.splitlines()[-1]
    assert "missing" in said.splitlines()[-1]
    assert "epoch 1" not in said
