"""Names of params.yaml: each keeps the rule, and no two runs or files share one.

A run is called DUMP-STUDENT-RECIPE-SEED, and names may hold hyphens: dump `main` with student `big-small`
would be dump `main-big` with student `small`. Such names are refused before anything is trained. Letter
case does not count: macOS and Windows keep one file for `Main` and `main`.
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
    "students": "student",
    "recipes": "recipe",
}
# Groups whose files lie in one folder.
_TOGETHER = (("teachers",), ("dumps", "ensembles"), ("students",), ("recipes",))

# Numbers of YAML 1.2 alone, which DVC reads; PyYAML takes them for text.
_NUMBER = re.compile(r"[0-9]+[eE][0-9]+|0o[0-7]+")

# Dump, or `baseline` -> STUDENT-RECIPE, both in lower case -> in words, students and recipes of that text.
_Heads = Mapping[str, Mapping[str, list[str]]]


def require_names(tree: Mapping[str, Any]) -> None:
    """Refuse names that break the rule, or that are one name where letter case does not count.

    Args:
        tree: of params.yaml, whose groups may be anything still.

    Raises:
        ConfigError: naming the group and the name.
    """
    for group, kind in KINDS.items():
        for name in _names(tree, group):
            if not isinstance(name, str):
                found = f"{group}: YAML takes the name {quoted(name)} for {type(name).__name__}"
                raise ConfigError(f"{found}; expected text; put it in quotes")
            require_name(kind, name)
            if _NUMBER.fullmatch(name):
                raise ConfigError(
                    f"{group}: {name} is text here and a number for DVC; expected a name that all readers "
                    "of YAML take for text; begin it with a letter"
                )
    for groups in _TOGETHER:
        _require_apart([name for group in groups for name in _names(tree, group)])


def _names(tree: Mapping[str, Any], group: str) -> list[Any]:
    named = tree.get(group)
    return list(named) if isinstance(named, Mapping) else []


def _require_apart(names: list[str]) -> None:
    """Refuse names that differ in the case of letters alone."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"names {other!r} and {name!r} differ in upper and lower case alone, which some file "
                "systems take for one; rename one"
            )


def require_runs_apart(params: Params) -> None:
    """Refuse names of which two runs, of whatever dumps, students, recipes and teachers, would share one.

    Raises:
        ConfigError: naming both.
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
    dumps = [name.lower() for name in (*params.dumps, *params.ensembles)]
    baselines = _tails(params, needs_teacher=False)
    return {**dict.fromkeys(dumps, _tails(params, needs_teacher=True)), paths.BASELINE: baselines}


def _tails(params: Params, *, needs_teacher: bool) -> dict[str, list[str]]:
    tails: dict[str, list[str]] = {}
    for student in params.students:
        for recipe, spec in params.recipes.items():
            # Whether one's own loss needs a teacher is known when its code runs, which is later.
            if spec.is_own or spec.needs_teacher == needs_teacher:
                words = f"student {student!r}, recipe {recipe!r}"
                tails.setdefault(f"{student}-{recipe}".lower(), []).append(words)
    return tails


def _hyphens(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "-"]


def _called(heads: _Heads, name: str) -> list[str]:
    """Return, in words, the students' runs whose name without seed is this one."""
    return [
        tail if name[:hyphen] == paths.BASELINE else f"dump {name[:hyphen]!r}, {tail}"
        for hyphen in _hyphens(name)
        for tail in heads.get(name[:hyphen], {}).get(name[hyphen + 1 :], ())
    ]


def _require_one(owners: list[str], name: str) -> None:
    if len(owners) > 1:
        raise ConfigError(
            f"{owners[0]}; and {owners[1]}: both would be the run {name}; expected a name for "
            "each; rename one of them"
        )
