"""Run the pipeline's commands in a project folder, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PIPELINE = [sys.executable, "-c", "from stages.cli import main; main()"]


def pipeline(project: Path, *arguments: str) -> str:
    """Run a command of this project in a folder, and return its output."""
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*PIPELINE, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    sys.stderr.write(done.stdout)
    return done.stdout
