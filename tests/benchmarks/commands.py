"""Run the pipeline's commands in a project folder, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
PIPELINE = [sys.executable, "-c", "from stages.cli import main; main()"]


def pipeline(project: Path, *arguments: str) -> str:
    """Run a command of this project in a folder, and return its output."""
    done = subprocess.run(
        [*PIPELINE, *arguments],
        cwd=project,
        env=_variables(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    sys.stderr.write(done.stdout)
    return done.stdout


def start(
    project: Path, *arguments: str, launcher: Sequence[str] = (), **variables: str
) -> subprocess.Popen[str]:
    """Start a command of this project in a folder, with further environment variables.

    Args:
        project: the folder.
        arguments: of the command.
        launcher: words before it, e.g. of torchrun.
        variables: of the environment.
    """
    return subprocess.Popen(
        [*launcher, *PIPELINE, *arguments],
        cwd=project,
        env={**_variables(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _variables() -> dict[str, str]:
    paths = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}
