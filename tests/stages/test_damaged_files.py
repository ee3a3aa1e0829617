"""Random damage to any file that a command reads: it is refused in one line, or changes nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.stages.forks import Forks
from tests.stages.projects import DUMPED, content

AGAIN = "again.zarr"
# What reads which folders.
READERS = {
    f"cache-logits main --out {AGAIN}": ("data/prepared", "models/teachers"),
    "train-student pupil kd 0 --dump main": ("data/logits/main.zarr", "models/teachers"),
}
SHORT, LONG = 10, 300


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


def result_of(forks: Forks, folder: Path, command: str) -> dict | str:
    """Return what a command leaves behind that the damage was not in, or the line with which it refuses."""
    status, said = forks.run(folder, *command.split())
    if status == 0:
        made = content(folder)
        return {
            name: made[name] for name in made if name.startswith((AGAIN, "models/students", "runs/main"))
        }
    assert status == 1, said
    assert "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("pipeline: "), said
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    "count", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("command", READERS, ids=["dump", "student"])
def test_damage_is_refused_or_changes_nothing(forks, projects, tmp_path, command, count):
    expected = result_of(forks, projects.after(*DUMPED, lambda folder: None), command)
    assert isinstance(expected, dict)
    generator, refused = random.Random(count), 0
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(projects.after(*DUMPED), folder)
        files = [
            f for place in READERS[command] for f in sorted((folder / place).rglob("*")) if f.is_file()
        ]
        file = generator.choice(files)
        kind = damage(file, generator)
        result = result_of(forks, folder, command)
        refused += isinstance(result, str)
        assert isinstance(result, str) or result == expected, f"{kind} in {file.relative_to(folder)}"
        shutil.rmtree(folder)
    print(f"{command}: {count} damages, {refused} refused, the others changed nothing")
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
