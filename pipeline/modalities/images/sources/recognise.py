"""Recognise images in parts for `pipeline init`: tars, Parquet, saved datasets, a CSV file beside images.

Class folders are no matter of this file: `init` takes a folder for them if nothing is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, first_of
from pipeline.modalities.images.decoding import SUFFIXES
from pipeline.modalities.images.sources.tables import IMAGES, LABEL, PATHS, SPLIT
from pipeline.modalities.modality import Recognised
from pipeline.samples import arrow
from pipeline.samples.containers import read_range
from pipeline.samples.files import is_hidden, suffix_of
from pipeline.samples.label_tables import TABLE
from pipeline.samples.parts import SPLIT_WORDS, split_of
from pipeline.samples.splits import TRAIN
from pipeline.samples.tables import LINES, read_delimited
from pipeline.samples.tars import Member, list_members

# Usual names of columns and of keys in JSON members, best first.
_LABELS = (LABEL, "labels", "class", "class_name", "category", "target", "fine_label", "tags")
_IDS = ("id", "image_id", "__key__", "key", "uid")
_CLASS, _JSON, _TEXT = "cls", "json", "txt"
_TAR, _PARQUET, _CSV = ".tar", ".parquet", ".csv"
_METADATA = "metadata.csv"  # the name of Hugging Face's ImageFolder


def recognise(path: Path, name: str) -> Recognised | None:
    """Return how to read the images at a path, or None if they are in no such file.

    Args:
        path: a folder or file.
        name: its name for params.yaml.

    Raises:
        DataError: a tar that cannot be read, or images without a usual label.
    """
    if path.is_file():
        return _of_file(path, name)
    if any((path / file).is_file() for file in (arrow.STATE, arrow.DICT)):
        train = path / TRAIN if (path / TRAIN).is_dir() else path
        options = _of_arrow(train)
        return None if options is None else Recognised(source=f"hf:{name}", options=options)
    return _in_folder(path, name)


def _of_file(path: Path, name: str) -> Recognised | None:
    """Return how to read one file; its options are those of all files of its dataset."""
    if path.suffix not in _KINDS:
        return None
    kind, options_of = _KINDS[path.suffix]
    options = options_of(path)
    return None if options is None else Recognised(source=f"{kind}:{name}", options=options)


def _in_folder(path: Path, name: str) -> Recognised | None:
    """Return how to read a folder of tars or tables, of whose names a word tells the split."""
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    for suffix in _KINDS:
        # A tar beside class folders may be a copy of them; a CSV file beside them may name their images.
        if suffix != _CSV and len(folders) > len(splits):
            continue
        files = [file for folder in (path, *splits) for file in sorted(folder.glob(f"*{suffix}"))]
        for first, inside in _first_of(path, [file for file in files if file.name != TABLE], suffix):
            if found := _of_file(first, f"{name}{inside}"):
                return found
    return None


def _first_of(path: Path, files: Sequence[Path], suffix: str) -> Iterator[tuple[Path, str]]:
    """Yield a file to look at, and its name below the folder; "" if the folder is the source."""
    training = [file for file in files if split_of(file.relative_to(path).as_posix()) == TRAIN]
    if training or (files and suffix != _CSV):
        yield (training or files)[0], ""
    elif len(files) == 1 or path / _METADATA in files:
        one = files[0] if len(files) == 1 else path / _METADATA
        yield one, f"/{one.relative_to(path).as_posix()}"


def _of_tar(path: Path) -> dict[str, Any]:
    """Return the options of tars like this one.

    Raises:
        DataError: it has no usual label.
    """
    members, _ = list_members(path)
    first = {member.suffix: member for member in reversed(members)}
    if _CLASS in first:
        return {}
    keys = _json_keys(path, first[_JSON]) if _JSON in first else []
    key = next((name for name in _LABELS if name in keys), None)
    if key is not None:
        return {"label": f"{_JSON}:{key}"}
    if _TEXT in first:
        return {"label": _TEXT}
    raise DataError(
        f"{path}: has members {first_of([f'.{suffix}' for suffix in first], 8) or 'none'}; expected "
        f".{_CLASS}, .{_TEXT} or .{_JSON} with {' or '.join(_LABELS[:3])}; write params.yaml "
        "by hand, with data.label"
    )


def _json_keys(path: Path, member: Member) -> Sequence[str]:
    with suppress(ValueError, RecursionError):
        value = json.loads(read_range(path, member.start, member.length).tobytes())
        return list(value) if isinstance(value, dict) else []
    return []


def _of_arrow(path: Path) -> dict[str, Any] | None:
    """Return the options of a Parquet file or of a saved split; None without a column of images."""
    schema = arrow.read_schema(path)
    image = next((name for name in (*arrow.image_columns(schema), *IMAGES) if name in schema.names), None)
    if image is None or not arrow.holds_bytes(schema, image):
        return None
    ids = next((name for name in _IDS if name in schema.names and _are_unique(path, name)), None)
    named = (
        {} if image == next((name for name in IMAGES if name in schema.names), None) else {"image": image}
    )
    return {**named, **_label(path, schema.names), **({} if ids is None else {"id": ids})}


def _are_unique(path: Path, column: str) -> bool:
    values = arrow.read_table(path, [column]).column(column).to_pylist()
    return len(set(values)) == len(values) and None not in values


def _of_csv(path: Path) -> dict[str, Any] | None:
    """Return the options of a table whose paths name images; None for other tables."""
    try:
        columns = read_delimited(path, delimiter=",")
    except (OSError, DataError):
        return None
    del columns[LINES]
    linked = next((name for name in PATHS if name in columns), None)
    if linked is None or not columns[linked] or suffix_of(columns[linked][0]) not in SUFFIXES:
        return None
    return _label(path, [name for name in columns if name not in (linked, SPLIT)])


def _label(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the option for a column of labels; nothing for the usual one.

    Raises:
        DataError: there is none.
    """
    found = next((name for name in _LABELS if name in names), None)
    if found is None:
        raise DataError(
            f"{path}: has the columns {first_of(names, 8) or 'none'} beside its images; expected one "
            f"called {' or '.join(_LABELS[:3])}; rename it, or write params.yaml by hand, with data.label"
        )
    return {} if found == LABEL else {"label": found}


# Suffix -> kind of source, and its options; None for a file without images.
_KINDS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any] | None]]] = {
    _TAR: ("wds", _of_tar),
    _PARQUET: ("parquet", _of_arrow),
    _CSV: ("csv", _of_csv),
}
