"""The user's name, which torch looks up when it is imported."""

from __future__ import annotations

import getpass
import os


def name_user() -> None:
    """Set a name for a user id without an account, e.g. under `docker run -u 1001`."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # depends on the version of Python
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
