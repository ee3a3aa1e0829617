"""Recognise texts at a path for `pipeline init`: tables by their suffixes, folders by their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.core.errors import DataError, first_of, quoted
from pipeline.core.progress import note
from pipeline.modalities.modality import Recognised
from pipeline.modalities.text.sources.folder import TEXT_FILES
from pipeline.modalities.text.sources.readers import arrow_names
from pipeline.modalities.text.sources.tables import split_of
from pipeline.samples.files import holds_mostly
from pipeline.samples.tables import header_of

_TRAIN = "train"
# Usual names of columns, best first.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "sentence1",
        "premise",
        "question",
        "question1",
        "content",
        "review",
        "document",
    ),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "class", "category", "target", "sentiment", "topic", "language", "lang"),
    "id": ("id", "idx", "guid", "uid"),
}


def recognise(path: Path, name: str) -> Recognised | None:
    """Return how to read the texts at a path, or None if they are none.

    Args:
        path: a folder or file.
        name: its name for params.yaml.

    Raises:
        DataError: a table without a column that holds texts or labels.
    """
    if path.is_file():
        kind = path.suffix.removeprefix(".")
        return (
            Recognised(source=f"{kind}:{name}", options=_columns(path, kind)) if kind in _HEADERS else None
        )
    if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        train = path / _TRAIN if (path / _TRAIN).is_dir() else path
        return Recognised(source=f"hf:{name}", options=_columns(train, "hf"))
    tables = (
        file for file in sorted(path.iterdir()) if split_of(file) == _TRAIN and file.suffix[1:] in _HEADERS
    )
    if (table := next(tables, None)) is not None:
        kind = table.suffix.removeprefix(".")
        return Recognised(source=f"{kind}:{name}", options=_columns(table, kind))
    return Recognised(source=f"folder:{name}") if holds_mostly(TEXT_FILES, path) else None


def _columns(path: Path, kind: str) -> dict[str, str | None]:
    """Return the columns of a table by the keys of `data`.

    Raises:
        DataError: there is none with texts, or none with labels.
    """
    names = _HEADERS[kind](path)
    lower = {name.lower(): name for name in reversed(names)}
    found = {
        key: next((lower[one] for one in usual if one in lower), None) for key, usual in _NAMES.items()
    }
    _fill(path, found, names)
    for key in ("text", "label"):
        if found[key] is None:
            raise DataError(
                f"{path}: has the columns {first_of([repr(name) for name in names]) or 'none'}; expected "
                f"one called {' or '.join(_NAMES[key][:3])}; rename it, or name it under data.{key} of a "
                "params.yaml; run: pipeline preset text --out params.yaml --dvc"
            )
    return found


def _fill(path: Path, found: dict[str, str | None], names: Sequence[str]) -> None:
    """Take a lone column without a usual name as the missing one, and say so.

    E.g. columns message, topic: topic is the label, so message is the text.
    """
    missing = [key for key in ("text", "label") if found[key] is None]
    others = [name for name in names if name not in found.values()]
    if len(missing) == len(others) == 1:
        found[missing[0]] = others[0]
        note(f"{path}: column {quoted(others[0])} is taken as the {missing[0]}; data.{missing[0]} names it")


def _json_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        try:
            first = json.loads(file.readline())
        except (ValueError, RecursionError):
            return []
    return list(first) if isinstance(first, dict) else []


_HEADERS: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "csv": header_of,
    "tsv": partial(header_of, delimiter="\t"),
    "jsonl": _json_lines,
    "parquet": arrow_names,
    "hf": arrow_names,
}
