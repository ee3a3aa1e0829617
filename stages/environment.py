"""Prepare the environment of a command for containers and unusual terminals."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from pipeline.core.user import name_user


def fill_in() -> None:
    """Set a user name, and make all text printable; call this before torch is imported."""
    name_user()
    # A shell's `2>&-` closes the stream, and Python then sets it to None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # File names may contain undecodable bytes, and a terminal may support few characters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
