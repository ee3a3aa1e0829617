"""Names of params.yaml: check their form, and that no two runs or files share a name.

A run is called DUMP-STUDENT-RECIPE-SEED, and names may contain hyphens. So dump `main` with student
`big-small` collides with dump `main-big` and student `small`. Such names are refused before any training.
Letter case is ignored: macOS and Windows store `Main` and `main` as one file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError, quoted
from pipeline.core.text import require_name
from stages import paths
from stages.params import Params

KINDS = {
    "teachers": "teacher",
    "dumps": "dump",
    "ensembles": "ensemble",
    "reheads": "re-headed dump",
    "probes": "probe",
    "students": "student",
    "recipes": "recipe",
}
# Groups whose stores share a folder.
STORES = ("dumps", "ensembles", "reheads", "probes")
_TOGETHER = (("teachers",), STORES, ("students",), ("recipes",))

# Numbers in YAML 1.2, which DVC reads, but text for PyYAML, e.g. 1e3 or 0o17.
_NUMBER = re.compile(r"[0-9]+[eE][0-9]+|0o[0-7]+")

# Dump, or `baseline` -> STUDENT-RECIPE, both in lower case -> descriptions of all pairs with that text.
_Heads = Mapping[str, Mapping[str, list[str]]]


def require_names(tree: Mapping[str, Any]) -> None:
    """Refuse names that break the rule, or that differ only in letter case.

    Args:
        tree: the unchecked values of params.yaml.

    Raises:
        ConfigError: naming the group and the name.
    """
    for group, kind in KINDS.items():
        for name in _names(tree, group):
            if not isinstance(name, str):
                found = f"{group}: YAML reads the name {quoted(name)} as {type(name).__name__}"
                raise ConfigError(f"{found}; expected text; put it in quotes")
            require_name(kind, name)
            if _NUMBER.fullmatch(name):
                raise ConfigError(
                    f"{group}: {name!r} is text here but a number for DVC; expected a name that every YAML "
                    "parser reads as text; begin it with a letter"
                )
    for groups in _TOGETHER:
        _require_apart([name for group in groups for name in _names(tree, group)])


def _names(tree: Mapping[str, Any], group: str) -> list[Any]:
    named = tree.get(group)
    return list(named) if isinstance(named, Mapping) else []


def _require_apart(names: list[str]) -> None:
    """Refuse names that differ only in letter case."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"names {other!r} and {name!r} differ only in letter case, which some file systems ignore; "
                "rename one"
            )


def require_runs_apart(params: Params) -> None:
    """Refuse names with which two possible runs, of students or teachers, would have the same name.

    Raises:
        ConfigError: naming both runs.
    """
    heads = _heads(params)
    for head, tails in heads.items():
        cut = any(head[:hyphen] in heads for hyphen in _hyphens(head))
        for tail, pairs in tails.items():
            if cut or len(pairs) > 1:
                _require_one(_called(heads, f"{head}-{tail}"), f"{head}-{tail}-SEED")
    for teacher in params.teachers:
        folder = paths.teacher_run(teacher).lower()
        without_seed, _, seed = folder.rpartition("-")
        if seed.isdecimal() and seed == str(int(seed)):
            _require_one([f"teacher {teacher!r}", *_called(heads, without_seed)], folder)


def _heads(params: Params) -> _Heads:
    dumps = [name.lower() for name in params.stores]
    baselines = _tails(params, needs_teacher=False)
    return {**dict.fromkeys(dumps, _tails(params, needs_teacher=True)), paths.BASELINE: baselines}


def _tails(params: Params, *, needs_teacher: bool) -> dict[str, list[str]]:
    tails: dict[str, list[str]] = {}
    for student in params.students:
        for recipe, spec in params.recipes.items():
            # Whether a user's loss needs a teacher is unknown until its code runs, so it counts as both.
            if spec.is_own or spec.needs_teacher == needs_teacher:
                words = f"student {student!r}, recipe {recipe!r}"
                tails.setdefault(f"{student}-{recipe}".lower(), []).append(words)
    return tails


def _hyphens(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "-"]


def _called(heads: _Heads, name: str) -> list[str]:
    """Describe the students' runs whose name without the seed is this one."""
    return [
        tail if name[:hyphen] == paths.BASELINE else f"dump {name[:hyphen]!r}, {tail}"
        for hyphen in _hyphens(name)
        for tail in heads.get(name[:hyphen], {}).get(name[hyphen + 1 :], ())
    ]


def _require_one(owners: list[str], name: str) -> None:
    if len(owners) > 1:
        raise ConfigError(f"{owners[0]} and {owners[1]} would both be named {name}; rename one of them")
