"""Tables of images: Parquet, folders that the library `datasets` saved, and CSV files of paths.

A Parquet or `datasets` column has the encoded bytes, or structs of bytes and path. A CSV file has paths,
relative to itself. A row is named by the column `data.id`, by its path, or by the digest of its content and
its occurrence: then rows may be reordered, and no other row's views change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, did_you_mean, first_of, quoted
from pipeline.core.progress import note
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources.parts import NONE, Found, Rows, joined, parts_of, refuse_all
from pipeline.samples import arrow
from pipeline.samples.containers import Cell, Container, ContainerKind, Content
from pipeline.samples.parts import SPLIT_WORDS, UNLABELLED_PART, Parts, path_below, relative_name
from pipeline.samples.samples import LeftOut
from pipeline.samples.splits import TRAIN
from pipeline.samples.tables import LINES, Columns, read_delimited

LABEL = "label"
# The usual names of columns with an image, or with the path of one; best first.
IMAGES = ("image", "img", "jpg", "picture")
PATHS = ("file_name", "path", "file", "filename", "image", "image_path")
# A column of this name lists the tags that apply, separated by semicolons, as in labels.csv.
_TAGS, _SEPARATOR = "tags", ";"
SPLIT = "split"


def open_parquet(detail: str, options: ImageOptions) -> ImageSource:
    """Open Parquet files by a pattern, or a folder whose files' names tell their splits; needs pyarrow."""
    arrow.require_pyarrow(f"parquet:{detail}")
    return _of_arrow(f"parquet:{detail}", "parquet", parts_of(detail, ".parquet", options), options)


def open_datasets(detail: str, options: ImageOptions) -> ImageSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; needs pyarrow."""
    arrow.require_pyarrow(f"hf:{detail}")
    return _of_arrow(f"hf:{detail}", "arrow", _saved_parts(Path(detail)), options)


def _saved_parts(root: Path) -> Parts:
    """Return the data files of each split of a saved dataset."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected one written by save_to_disk; correct data.source"
        )
    if (root / arrow.STATE).is_file():
        return Parts(files={TRAIN: arrow.arrow_files(root)}, left_out=LeftOut())
    folders = {path.name: path for path in sorted(root.iterdir()) if (path / arrow.STATE).is_file()}
    files = {
        SPLIT_WORDS[name]: arrow.arrow_files(path) for name, path in folders.items() if name in SPLIT_WORDS
    }
    if TRAIN not in files:
        raise DataError(
            f"{root}: has the splits {first_of(list(folders)) or 'none'}; expected train, written by "
            "save_to_disk; correct data.source"
        )
    return Parts(
        files=files, left_out=LeftOut(unused=tuple(name for name in folders if name not in SPLIT_WORDS))
    )


def _of_arrow(where: str, kind: ContainerKind, parts: Parts, options: ImageOptions) -> ImageSource:
    paths, root = parts.paths, parts.root
    schema = arrow.read_schema(paths[0])
    container = Container(
        kind=kind,
        root=root,
        parts=tuple(relative_name(path, root) for path in paths),
        column=_column(paths[0], schema.names, options.image, IMAGES, "image"),
    )
    rows = {}
    for split, some in parts.files.items():
        numbers = [paths.index(path) for path in some]
        labelled = split != UNLABELLED_PART
        each = [_arrow_rows(container, part, options, labelled=labelled) for part in numbers]
        rows[split] = sum(each[1:], each[0])
        if options.id is None:
            note(f"{where}: reading {len(rows[split]):,} {split} images for names; or set data.id")
            rows[split] = _named_by_content(container, numbers, rows[split])
    labels = _label_columns(paths[0], schema.names, options)
    names = arrow.class_names(schema, labels[0]) if len(labels) == 1 else None
    found = Found(where=where, rows=rows, class_names=names, container=container, left_out=parts.left_out)
    return joined(found, options)


def _arrow_rows(container: Container, part: int, options: ImageOptions, *, labelled: bool) -> Rows:
    """Return the rows of a file; without an id column, their names are empty."""
    path = container.path(part)
    known = arrow.read_schema(path).names
    _column(path, known, container.column, (), "image")
    labels = _label_columns(path, known, options) if labelled else []
    ids = [] if options.id is None else [_column(path, known, options.id, (), "id")]
    columns: Columns = arrow.read_table(path, [*labels, *ids]).to_pydict() if labels or ids else {}
    count = arrow.count_rows(path)
    places = [f"{path}, row {row}" for row in range(count)]
    return Rows(
        names=_ids(columns[ids[0]], places) if ids else [""] * count,
        values=_values(columns, labels, count),
        files=places,
        contents=[Content(container, Cell(part, row, 0)) for row in range(count)],
    )


def _ids(values: Sequence[Any], places: Sequence[str]) -> list[str]:
    """Return the names in an id column.

    Raises:
        DataError: some are empty.
    """
    names = ["" if value is None else str(value) for value in values]
    empty = [place for name, place in zip(names, places, strict=True) if not name.strip()]
    refuse_all(
        empty, "a unique one in each; fill them, or leave data.id out", fault="rows with an empty id"
    )
    return names


def _named_by_content(container: Container, parts: Sequence[int], rows: Rows) -> Rows:
    """Name the rows of some files by digest and occurrence, which reads every image once.

    Raises:
        DataError: rows without an image.
    """
    seen: Counter[str] = Counter()
    faults: list[str] = []
    names = []
    for part in parts:
        for content in arrow.scanned(container.path(part), container.column):
            if isinstance(content, DataError):
                faults.append(str(content).partition(":")[0])
                continue
            digest = hashlib.blake2b(content.data, digest_size=12).hexdigest()
            names.append(f"{digest}#{seen[digest]}")
            seen[digest] += 1
    refuse_all(faults, "bytes or a path in each; fill them, or remove them", fault="rows without an image")
    return Rows(names=names, values=rows.values, files=rows.files, contents=rows.contents)


# CSV files of paths.


def open_csv(detail: str, options: ImageOptions) -> ImageSource:
    """Open tables of paths and labels by a pattern, or a folder whose files' names tell their splits.

    A column `split` divides the rows of a table.
    """
    parts = parts_of(detail, ".csv", options)
    rows: dict[str, Rows] = {}
    for split, paths in parts.files.items():
        for path in paths:
            for name, some in _csv_rows(path, parts.root, split, options).items():
                rows[name] = rows[name] + some if name in rows else some
    if TRAIN not in rows:
        raise DataError(f"csv:{detail}: no rows for training; expected some; correct the table")
    found = Found(where=f"csv:{detail}", rows=rows, root=parts.root, left_out=parts.left_out)
    return joined(found, options)


def _csv_rows(path: Path, root: Path, split: str, options: ImageOptions) -> dict[str, Rows]:
    """Return the rows of a table by split."""
    try:
        columns = read_delimited(path, delimiter=",")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a readable table; correct data.source"
        ) from None
    lines = columns.pop(LINES)
    known = list(columns)
    linked = columns[_column(path, known, options.image, PATHS, "image")]
    labels = _label_columns(path, known, options) if split != UNLABELLED_PART else []
    places = [f"{path}, line {line}" for line in lines]
    files = [path_below(path.parent, name, place) for name, place in zip(linked, places, strict=True)]
    names = [relative_name(file, root) for file in files]
    if options.id is not None:
        names = _ids(columns[_column(path, known, options.id, (), "id")], places)
    values = _values(columns, labels, len(lines))
    empty = [place for name, place in zip(linked, places, strict=True) if not name.strip()]
    refuse_all(empty, "a path in each; fill them, or remove the lines", fault="lines without a path")
    whole = Rows(names=names, values=values, files=list(map(str, files)))
    splits = [split] * len(lines)
    if split == TRAIN and SPLIT in columns:
        splits = [_named_split(name, place) for name, place in zip(columns[SPLIT], places, strict=True)]
    return {name: whole.subset([n for n, one in enumerate(splits) if one == name]) for name in set(splits)}


def _named_split(name: str, place: str) -> str:
    if name.strip().lower() not in SPLIT_WORDS:
        raise DataError(
            f"{place}: split {quoted(name)}; expected train, test, validation or unlabelled; correct it"
        )
    return SPLIT_WORDS[name.strip().lower()]


# Columns.


def _column(path: Path, known: Sequence[str], asked: str | None, usual: Sequence[str], key: str) -> str:
    """Return the column that `data.KEY` names, or the first usual one.

    Raises:
        DataError: there is none.
    """
    found = asked if asked in known else None
    if asked is None:
        found = next((name for name in usual if name in known), None)
    if found is None:
        expected = quoted(asked) if asked is not None else f"one of {', '.join(usual)}"
        raise DataError(
            f"{path}: has the columns {first_of(known, 8) or 'none'}; expected {expected}; set data.{key}"
            f"{did_you_mean(asked or usual[0], known)}"
        )
    return found


def _label_columns(path: Path, known: Sequence[str], options: ImageOptions) -> list[str]:
    """Return the columns of the label; of several, each is a tag or a number."""
    if options.label == NONE:
        return []
    asked = options.label or LABEL
    names = [asked] if asked in known else [name.strip() for name in asked.split(",")]
    return [_column(path, known, name, (), "label (none for samples without labels)") for name in names]


def _values(columns: Mapping[str, Sequence[Any]], labels: Sequence[str], count: int) -> list[Any]:
    """Return the label of each row as the table has it."""
    if not labels:
        return [None] * count
    if len(labels) > 1:
        rows = zip(*(columns[name] for name in labels), strict=True)
        return [dict(zip(labels, row, strict=True)) for row in rows]
    (name,) = labels
    return [_tags(value) if name == _TAGS else value for value in columns[name]]


def _tags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [tag.strip() for tag in value.split(_SEPARATOR) if tag.strip()]
