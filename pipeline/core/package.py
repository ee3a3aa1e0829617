"""The program as a package: its version, and the command that installs an extra.

Owns the one reading of `version` in pyproject.toml: a checkout reads that file, whatever was installed
beside it; an installed wheel reads its own metadata, which was made from the file.
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
    """Return the version of an installed package, or "unknown" for one that is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def extra_command(extra: str) -> str:
    """Return the command that installs an extra, e.g. "timm", to where this program runs from.

    No registry has the program: a checkout is installed by its folder, and of a wheel that is installed pip
    takes the list of its extras.
    """
    where, editable = (_ROOT, "-e ") if _checkout() else (NAME, "")
    return f"pip install {editable}{shlex.quote(f'{where}[{extra}]')}"


@cache
def _checkout() -> Mapping[str, Any]:
    """Return the project table of the checkout that this code lies in; empty for a wheel."""
    # Beside an installed wheel lies site-packages, where a stranger's pyproject.toml may be.
    with suppress(OSError, ValueError, KeyError, TypeError):
        project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        if project["name"] == NAME and project["version"]:
            return project
    return {}
