"""Projects of this repository's DVC files, and commands in them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import patience

ROOT = Path(__file__).parents[2]
# Installed programs; under the fixture `preloaded`, `ENVIRONMENT` has quicker ones.
INSTALLED = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}
ENVIRONMENT = dict(INSTALLED)


def call(*command: str, environment: dict[str, str] = ENVIRONMENT) -> str:
    """Run a command that must succeed; return what it printed."""
    done = patience.call(command, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def lay_out(folder: Path, data: Path, params: Mapping[str, Any]) -> None:
    """Make a project of this repository's DVC files and small data."""
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(data, folder / "data.npz")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def commit(message: str) -> None:
    call("git", "add", "-A")
    call("git", "commit", "-qm", message)


def change(edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit params.yaml."""
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    edit(params)
    path.write_text(yaml.safe_dump(params))
