"""The user's name, which torch asks for when it is imported."""

from __future__ import annotations

import getpass
import os


def name_user() -> None:
    """Name a user whose number no list has, as under `docker run -u 1001`; others keep their names."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # which one depends on Python's version
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
