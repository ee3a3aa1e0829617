"""The surroundings of a command: what containers and odd terminals lack is filled in before work begins."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from pipeline.core.user import name_user


def fill_in() -> None:
    """Give the user a name, and let any text be printed; to be called before torch is imported."""
    name_user()
    # `2>&-` closes one.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are no text, and a terminal may know few letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
