"""The program as a package: its version, and the command that installs an extra.

Owns the only reading of `version` in pyproject.toml. A checkout reads that file, even if another version is
installed. An installed wheel reads its metadata, which was built from the file.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NAME = "softlabel-pipeline"
_ROOT = Path(__file__).parents[2]


def program_version() -> str:
    """Return this program's version, e.g. 0.2.0.

    >>> program_version().count(".")
    2
    """
    return str(_checkout()["version"]) if _checkout() else installed_version(NAME)


def installed_version(name: str) -> str:
    """Return the version of a package, or "unknown" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def extra_command(extra: str) -> str:
    """Return the command that installs an extra, e.g. "timm", for the running program.

    The program is in no registry. A checkout is installed by its folder; for an installed wheel, pip reads
    the extras from its metadata.
    """
    where, editable = (_ROOT, "-e ") if _checkout() else (NAME, "")
    return f"pip install {editable}{shlex.quote(f'{where}[{extra}]')}"


@cache
def _checkout() -> Mapping[str, Any]:
    """Return the project table of the checkout that contains this code; empty for a wheel."""
    # For a wheel, _ROOT is site-packages, which may contain a foreign pyproject.toml.
    with suppress(OSError, ValueError, KeyError, TypeError):
        project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        if project["name"] == NAME and project["version"]:
            return project
    return {}
