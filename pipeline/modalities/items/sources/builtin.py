"""The built-in log: Debian's source packages and the packages that they depend on.

`builtin/debian_dependencies.md` has origin, licence and selection. The log has no time, so the order of a
package's dependencies is drawn.
"""

from __future__ import annotations

import hashlib
import lzma
from importlib.resources import files

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.items.form import ItemsSource
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.sources.log import Interactions, histories_of

NAME = "debian-dependencies"
FILE = "debian_dependencies.txt.xz"
DIGEST = "0e31034419fb4c69a53f6723456a76b4e64197853c102448275b3a3578c7e74a"


def open_builtin(detail: str, options: ItemsOptions) -> ItemsSource:
    """Open the built-in log; users are source packages, items are packages."""
    if detail:
        raise ConfigError(f"data.source is '{NAME}:{detail}'; expected {NAME} alone; correct it")
    pairs = [(user, item) for user, items in load_dependencies().items() for item in items]
    found = Interactions(users=[u for u, _ in pairs], items=[i for _, i in pairs], times=None)
    return histories_of(NAME, found, options)


def load_dependencies() -> dict[str, list[str]]:
    """Return source package -> packages that it depends on, in the order of their names.

    Raises:
        DataError: the file is damaged.
    """
    path = files("pipeline.modalities.items") / "builtin" / FILE
    packed = path.read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != DIGEST:
        raise DataError(f"{path}: digest {found[:12]}, expected {DIGEST[:12]}; reinstall the package")
    rows = (line.split(" ") for line in lzma.decompress(packed).decode().splitlines())
    return {user: items for user, *items in rows}
