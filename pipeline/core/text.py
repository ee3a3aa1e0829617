"""Text written by people: names, and YAML with a size limit and one-line errors.

PyYAML's safe loader silently keeps the last of two equal keys, and values such as `2024-13-45` raise plain
Python errors. Here both are refused with their line numbers. Merge keys (`<<`) work as in PyYAML.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from pipeline.core.errors import ConfigError, quoted, shortened

# A hundred times the largest known parameter files, which map thousands of classes.
LARGEST_BYTES = 8 << 20
_SHOWN_CHARACTERS = 400
_MERGE = "tag:yaml.org,2002:merge"
PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
NAME = re.compile(PATTERN)
RULE = "1 to 64 characters A-Z a-z 0-9 _ -, starting with a letter or digit"


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Check a mapping's keys for duplicates before merge keys add those of other mappings."""
        node: MappingNode = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag == _MERGE:
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in lines:
                found = f"key {quoted(key.value)} appears in lines {lines[name]} and {line}"
                raise ConstructorError(problem=f"{found}; expected it once; remove one")
            lines[name] = line
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                problem=f"{quoted(node.value)} is not a valid {kind}", problem_mark=node.start_mark
            ) from None


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; None for an empty text.

    Raises:
        ValueError: not YAML, or a duplicate key; the message is one line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except RecursionError:
        raise ValueError("its brackets or lists are nested too deeply") from None
    except yaml.YAMLError as error:
        # PyYAML names a text "<unicode string>"; callers name the file.
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ValueError(shortened(told, _SHOWN_CHARACTERS)) from None


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file in UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: too large, not text, not YAML, or a duplicate key; the message is one line.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"more than {LARGEST_BYTES >> 20} MiB, too large for a parameter file")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def require_name(kind: str, name: str) -> str:
    """Return the name of a teacher, dump, student, recipe or ensemble if it is valid.

    A name becomes part of file names, run names, DVC keys and shell words, e.g. the store
    `data/logits/NAME.zarr`. So it has no character that a file system, DVC or a shell would interpret.

    Args:
        kind: a noun for the message, e.g. "dump".
        name: as the user wrote it.

    Raises:
        ConfigError: the name breaks the rule.

    >>> require_name("dump", "main-4_views")
    'main-4_views'
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{kind} name {quoted(name)}: expected {RULE}; rename it")
    return name
