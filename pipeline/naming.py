"""Names that a user gives to teachers, dumps, students, recipes and ensembles: the one rule for them.

A name becomes part of file names, of run names, of DVC's keys and of shell words, e.g. the store
`data/logits/NAME.zarr`. So a name holds nothing that a file system, DVC or a shell would interpret.
"""

from __future__ import annotations

import re

from pipeline.errors import ConfigError, quoted

PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
NAME = re.compile(PATTERN)
RULE = "1 to 64 of the characters A-Z a-z 0-9 _ -, the first one a letter or digit"


def require_name(kind: str, name: str) -> str:
    """Return a name that keeps the rule.

    Args:
        kind: of the named thing, for the message, e.g. "dump".
        name: as the user wrote it.

    Raises:
        ConfigError: the name breaks the rule.

    >>> require_name("dump", "main-4_views")
    'main-4_views'
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{kind} name {quoted(name)}: expected {RULE}; rename it")
    return name
