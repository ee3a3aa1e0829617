"""Tables of texts: CSV, TSV, JSON lines, Parquet, and folders that the library `datasets` saved.

PATH is one file, whose test split is drawn, or a folder with a file for each split: train, test, and
optionally validation (val, valid, dev) and unlabelled (unlabeled). Files may be parts of a split, e.g.
train-00000-of-00002.parquet. Rows are named by a column, or by the digest of their content and its
occurrence: then rows may be added, removed and reordered, and no other row's views change.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean, first_of, quoted
from pipeline.core.package import extra_command
from pipeline.core.progress import note
from pipeline.modalities.text.form import TextSource
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.words import packed, pieces_of
from pipeline.samples.labels import require_class_names
from pipeline.samples.samples import UNLABELLED, LeftOut, Sample, Samples
from pipeline.samples.splits import TEST, TEST_SHARE, TRAIN, draw_test

VALIDATION, UNLABELLED_FILE = "validation", "unlabelled"
# Names of files -> split.
_SPLITS: Mapping[str, str] = {
    TRAIN: TRAIN,
    TEST: TEST,
    **dict.fromkeys(("validation", "val", "valid", "dev"), VALIDATION),
    **dict.fromkeys(("unlabelled", "unlabeled", "unsupervised"), UNLABELLED_FILE),
}
_PART = re.compile(r"(?P<split>.+?)(?:-\d+-of-\d+)?")
_MOST_FIELD = 1 << 28
_SHOWN = 3
Columns = dict[str, list[Any]]
Read = Callable[[Path, TextOptions], Columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a split.

    Args:
        texts: per row, its one or two texts.
        labels: names of classes, or None for unlabelled.
        names: values of the id column, or None without one.
        places: per row, file and line for errors.
    """

    texts: list[tuple[str, ...]]
    labels: list[str | None]
    names: list[str] | None
    places: list[str]

    def __add__(self, other: Rows) -> Rows:
        names = None if self.names is None or other.names is None else self.names + other.names
        return Rows(
            texts=self.texts + other.texts,
            labels=self.labels + other.labels,
            names=names,
            places=self.places + other.places,
        )


def open_csv(detail: str, options: TextOptions) -> TextSource:
    """Open comma-separated values with a header line, quoted as in RFC 4180."""
    return _open(detail, options, "csv", lambda path, _: _delimited(path, delimiter=","))


def open_tsv(detail: str, options: TextOptions) -> TextSource:
    """Open tab-separated values with a header line; quotes are ordinary characters, as in GLUE."""
    return _open(detail, options, "tsv", lambda path, _: _delimited(path, delimiter="\t"))


def open_jsonl(detail: str, options: TextOptions) -> TextSource:
    """Open a file with one JSON object per line."""
    return _open(detail, options, "jsonl", _json_lines)


def open_parquet(detail: str, options: TextOptions) -> TextSource:
    """Open Parquet files; needs pyarrow."""
    return _open(detail, options, "parquet", _parquet)


def open_datasets(detail: str, options: TextOptions) -> TextSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; needs pyarrow."""
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected one written by save_to_disk; correct data.source"
        )
    if (root / "state.json").is_file():
        return _source(root, {TRAIN: _rows(root, options, _saved(root, options))}, LeftOut())
    folders = {path.name: path for path in sorted(root.iterdir()) if (path / "state.json").is_file()}
    found = {_SPLITS[name]: path for name, path in folders.items() if name in _SPLITS}
    left_out = LeftOut(unused=tuple(name for name in folders if name not in _SPLITS))
    if TRAIN not in found:
        raise DataError(
            f"{root}: has the splits {sorted(folders) or 'none'}; expected train, written by save_to_disk; "
            f"correct "
            "data.source"
        )
    return _source(
        root,
        {split: _rows(path, options, _saved(path, options)) for split, path in found.items()},
        left_out,
    )


def _open(detail: str, options: TextOptions, suffix: str, read: Read) -> TextSource:
    root = Path(detail)
    if root.is_file():
        return _source(root, {TRAIN: _rows(root, options, read(root, options))}, LeftOut())
    if not root.is_dir():
        raise DataError(
            f"{root}: no such file or folder; expected PATH.{suffix}, or a folder with train.{suffix} and "
            f"test.{suffix}; correct data.source"
        )
    files: dict[str, list[Path]] = defaultdict(list)
    unused = []
    for path in sorted(root.iterdir()):
        split = split_of(path) if path.suffix == f".{suffix}" else None
        files[split].append(path) if split else unused.append(path.name)
    if TRAIN not in files or not {TEST, VALIDATION} & set(files):
        there = first_of([path.name for some in files.values() for path in some] + unused) or "nothing"
        raise DataError(
            f"{root}: has {there}; expected train.{suffix} and test.{suffix}, and optionally "
            f"validation.{suffix} and "
            f"unlabelled.{suffix}; name one file to have its test split drawn: "
            f"{suffix}:{root}/FILE.{suffix}"
        )
    rows = {
        split: sum((_rows(path, options, read(path, options)) for path in paths), _NONE)
        for split, paths in files.items()
    }
    return _source(root, rows, LeftOut(unused=tuple(unused)))


def split_of(path: Path) -> str | None:
    """Return the split that a file's name tells, or None.

    >>> split_of(Path("train-00000-of-00002.parquet")), split_of(Path("dev.csv")), split_of(Path("a.csv"))
    ('train', 'validation', None)
    """
    found = _PART.fullmatch(path.stem)
    return _SPLITS.get(found["split"]) if found else None


_NONE = Rows(texts=[], labels=[], names=[], places=[])


# Readers: a file to columns.


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read long texts."""
    before = csv.field_size_limit(_MOST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _decoded(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02X}); expected text in UTF-8; "
            f"convert it, e.g. "
            "iconv -t UTF-8"
        ) from None


def _delimited(path: Path, delimiter: str) -> Columns:
    quoted_fields = delimiter == ","
    text = io.StringIO(_decoded(path), newline="")
    with _long_fields():
        reader = csv.reader(
            text,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted_fields else csv.QUOTE_NONE,
            strict=quoted_fields,
        )
        try:
            header = next(reader, [])
            columns: Columns = {name: [] for name in header}
            columns[_LINES] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}:{reader.line_num}: {counted(len(row), 'field')}; expected {len(header)}, "
                        f"as the header "
                        f"has ({first_of(header)}); correct the line"
                    )
                for name, value in zip(header, row, strict=True):
                    columns[name].append(value)
                columns[_LINES].append(reader.line_num)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: {error}; expected quoted values; correct the line"
            ) from None
    return columns


_LINES = "\n"  # no name of a column


def _json_lines(path: Path, options: TextOptions) -> Columns:
    wanted = _wanted(options)
    columns: Columns = {_LINES: []}
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); expected one object per line; correct it"
            ) from None
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number}: {quoted(values)}; expected an object; correct it")
        for name in wanted & set(values):
            # A column that begins late is missing in the rows before.
            column = columns.setdefault(name, [])
            column += [None] * (len(columns[_LINES]) - len(column)) + [values[name]]
        columns[_LINES].append(number)
    for column in columns.values():
        column += [None] * (len(columns[_LINES]) - len(column))
    return columns


def _arrow(where: str) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ConfigError(
            f"{where} needs pyarrow, which is not installed; run: {extra_command('text')}"
        ) from None
    return pyarrow


def _parquet(path: Path, options: TextOptions) -> Columns:
    return _of_arrow(_read_arrow(path, _wanted(options)), options)


def _saved(folder: Path, options: TextOptions) -> Columns:
    return _of_arrow(_read_arrow(folder, _wanted(options)), options)


def arrow_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file, or of a folder of `save_to_disk`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: not such a file or folder.
    """
    names: list[str] = _read_arrow(path, set()).schema.names
    return names


def _read_arrow(path: Path, wanted: Collection[str]) -> Any:
    """Read columns of a Parquet file, or of a folder whose state.json lists files of Arrow's stream format.

    Without wanted columns, the table has all of them.
    """
    arrow = _arrow(str(path))
    kind = "a folder of save_to_disk" if path.is_dir() else "a Parquet file"
    try:
        table = _saved_table(arrow, path) if path.is_dir() else _parquet_table(path)
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not {kind} ({reason}); write it again") from None
    names = [name for name in table.column_names if name in wanted or not wanted]
    return table.select(names)


def _parquet_table(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(path, memory_map=True)


def _saved_table(arrow: Any, folder: Path) -> Any:
    tables = []
    for part in json.loads((folder / "state.json").read_text())["_data_files"]:
        with arrow.memory_map(str(folder / Path(part["filename"]).name)) as file:
            tables.append(arrow.ipc.open_stream(file).read_all())
    return arrow.concat_tables(tables)


def _of_arrow(table: Any, options: TextOptions) -> Columns:
    return _with_names(table.to_pydict(), (table.schema.metadata or {}).get(b"huggingface"), options)


def _with_names(columns: Columns, metadata: bytes | None, options: TextOptions) -> Columns:
    """Replace numbers of a label column by class names, where the file tells these."""
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    names = features.get(options.label, {}).get("names")
    if names and options.label in columns:
        labels = columns[options.label]
        columns[options.label] = [None if one is None or one < 0 else names[one] for one in labels]
    return columns


def _wanted(options: TextOptions) -> set[str]:
    return {
        name for name in (options.text, options.text_pair, options.label, options.id) if name is not None
    }


# Columns to rows.


def _rows(path: Path, options: TextOptions, columns: Columns) -> Rows:
    """Return the rows of a file.

    Raises:
        DataError: a column is missing, or rows without text.
    """
    lines = columns.pop(_LINES, None)
    texts = [name for name in (options.text, options.text_pair) if name is not None]
    for key, name in (("text", options.text), ("text_pair", options.text_pair), ("id", options.id)):
        if name is not None and name not in columns:
            raise DataError(
                f"{path}: no column {name!r}; found {first_of([repr(one) for one in columns]) or 'none'}; "
                f"set "
                f"data.{key} to the right one{did_you_mean(name, columns)}"
            )
    count = len(columns[options.text])
    places = (
        [f"{path}:{line}" for line in lines] if lines else [f"{path}: row {row}" for row in range(count)]
    )
    found = Rows(
        texts=list(zip(*(map(_text, columns[name]) for name in texts), strict=True)),
        labels=[_label(value) for value in columns.get(options.label, [None] * count)],
        names=None if options.id is None else [str(value) for value in columns[options.id]],
        places=places,
    )
    _require_words(found)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _label(value: Any) -> str | None:
    if value is None or value == "" or value == UNLABELLED or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of integers with gaps
    return str(value)


def _require_words(rows: Rows) -> None:
    """Refuse texts without words, and texts that UTF-8 cannot hold; all of them are counted."""
    empty = [
        place
        for place, texts in zip(rows.places, rows.texts, strict=True)
        if any(text.isspace() or not text or not pieces_of(text) for text in texts)
    ]
    if empty:
        raise DataError(
            f"{empty[0]}: no word in the text{_more(empty)}; expected at least one in every row; remove "
            f"them, or "
            "fill them"
        )


def _more(places: Sequence[str]) -> str:
    return f" ({len(places):,} such rows: {first_of(places, _SHOWN)})" if len(places) > 1 else ""


def _source(root: Path, rows: Mapping[str, Rows], left_out: LeftOut) -> TextSource:
    """Return the source of a table's splits; draw a test split if it has none."""
    train = rows[TRAIN]
    if UNLABELLED_FILE in rows:
        more = rows[UNLABELLED_FILE]
        train += Rows(
            texts=more.texts, labels=[None] * len(more.labels), names=more.names, places=more.places
        )
    classes = _classes(root, train.labels)
    samples = {TRAIN: _samples(train, classes)}
    for split in (VALIDATION, TEST):
        if split in rows:
            samples[split] = _samples(rows[split], classes)
    if TEST not in samples and VALIDATION in samples:
        samples[TEST] = samples.pop(VALIDATION)
    if TEST not in samples:
        samples[TRAIN], samples[TEST] = drawn(root, samples[TRAIN])
    return TextSource(
        classes=classes,
        train=samples[TRAIN],
        test=samples[TEST],
        validation=samples.get(VALIDATION),
        left_out=left_out,
    )


def drawn(root: Path, samples: Samples) -> tuple[Samples, Samples]:
    """Return training and test samples of a source without a test split."""
    names = [sample.name for sample in samples]
    tested = draw_test(names, np.array([sample.label for sample in samples], np.int64))
    note(
        f"{root}: no test split; {counted(int(tested.sum()), 'text')}, about {TEST_SHARE:.0%} of each "
        f"class, are "
        "taken for it: by the hashes of their names, so the same ones each time"
    )
    train, test = (Samples(samples.__getitem__, np.flatnonzero(part)) for part in (~tested, tested))
    return train, test


def _classes(root: Path, labels: Sequence[str | None]) -> tuple[str, ...]:
    """Return the class names in order: numbers by value, other names by their characters."""
    names = {label for label in labels if label is not None}
    numbers = all(re.fullmatch(r"\d{1,9}", name) for name in names)
    classes = tuple(sorted(names, key=int) if numbers else sorted(names))
    require_class_names(root, classes)
    return classes


def _samples(rows: Rows, classes: Sequence[str]) -> Samples:
    """Return the samples of a split.

    Raises:
        DataError: an id occurs twice, or a label is unknown in training.
    """
    places = {name: label for label, name in enumerate(classes)}
    for place, label in zip(rows.places, rows.labels, strict=True):
        if label is not None and label not in places:
            raise DataError(
                f"{place}: label {quoted(label)} is no class of the training rows "
                f"({counted(len(places), 'class')}); "
                f"expected one of these; correct it{did_you_mean(label, classes)}"
            )
    labels = np.array([UNLABELLED if label is None else places[label] for label in rows.labels], np.int64)
    contents = [packed(*texts) for texts in rows.texts]
    names = _by_content(contents) if rows.names is None else _unique(rows)

    def make(row: int) -> Sample:
        return Sample(names[row], int(labels[row]), lambda: contents[row])

    return Samples(make, np.arange(len(contents)))


def _by_content(contents: Sequence[NDArray[np.uint8]]) -> list[str]:
    """Name rows by digest and occurrence: equal texts are told apart by their order alone."""
    seen: Counter[str] = Counter()
    names = []
    for content in contents:
        digest = hashlib.blake2b(content.tobytes(), digest_size=12).hexdigest()
        names.append(f"{digest}#{seen[digest]}")
        seen[digest] += 1
    return names


def _unique(rows: Rows) -> list[str]:
    names = rows.names or []
    first: dict[str, str] = {}
    twice = []
    for name, place in zip(names, rows.places, strict=True):
        if name in first:
            twice.append(f"{quoted(name)} at {first[name]} and {place}")
        first.setdefault(name, place)
    if twice:
        raise DataError(
            f"id {twice[0]}: occurs twice{_more(twice)}; expected a unique id for each row; correct them, "
            f"or leave "
            "data.id out, to name rows by their content"
        )
    empty = next((place for name, place in zip(names, rows.places, strict=True) if not name.strip()), None)
    if empty is not None:
        raise DataError(
            f"{empty}: an empty id; expected a unique id for each row; fill it, or leave data.id out"
        )
    return names
