"""Write cached outputs for other loaders: as siblings of the samples, in tars or Parquet, by the same keys.

    OUT/card.json                            views, codec, fidelity, classes, digests of the files
    wds       OUT/view-003/train-000000.tar  cat/0001.003.npy (C,), …
              OUT/plain/test-000000.tar      cat/0001.plain.npy (C,): the un-augmented sample
    parquet   OUT/train-view-003.parquet     key, view, logits
              OUT/test.parquet               key, view (null), logits

One file holds one view, as one epoch reads it. Owns the files' layout and their bytes, which depend on the
store, the data and the options alone. `stages/export_logits.py` owns the command.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, LockedError, counted, first_of, quoted
from pipeline.core.files import sync_folder, write_atomic, write_json
from pipeline.core.hashing import file_digest
from pipeline.core.package import program_version
from pipeline.core.progress import note
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.arrow import require_pyarrow
from pipeline.samples.packed import Split
from pipeline.samples.tars import list_members, split_name
from pipeline.store.soft_labels import SoftLabels
from pipeline.tasks.table import task_of

CARD = "card.json"
_ROWS_AT_ONCE = 4096
_PLAIN = "plain"
_TRAIN = "train"
_HELD_OUT = "validation", "test"
_ABOUT = (
    "Outputs of a teacher, computed once per view. A softmax's logits are known up to a constant per row: "
    "each row's maximum is 0. View v of a sample is drawn from the views below and the sample's key, so "
    "outputs belong to samples that were rendered so, and to no others."
)
Values = NDArray[Any]  # (b, C) float16 or float32
Layout = Sequence[tuple[str, NDArray[np.int64]]]  # name of each tar, and the rows (n,) in it
Batches = Iterator[tuple[Sequence[str], Values]]  # b keys and their outputs, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The form of an export.

    Args:
        form: wds or parquet.
        half: float16 instead of float32.
        shard_rows: samples per tar.
        like: tars whose names and order of keys the exported tars of training samples follow.
    """

    form: str
    half: bool = False
    shard_rows: int = 10_000
    like: Sequence[Path] = ()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Outputs:
    """The outputs of one view of a split.

    Args:
        split: its name.
        view: its number; None for un-augmented samples.
        keys: N keys.
        values: returns the outputs (b, C) of some rows (b,).
    """

    split: str
    view: int | None
    keys: Sequence[str]
    values: Callable[[NDArray[np.int64]], Values]

    @property
    def label(self) -> str:
        """The view's number in three digits, or plain."""
        return _PLAIN if self.view is None else f"{self.view:03d}"

    def batches(self, rows: NDArray[np.int64]) -> Batches:
        """Yield keys and outputs of some rows, a few thousand at a time."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            yield [self.keys[row] for row in some.tolist()], self.values(some)


def export_logits(store: SoftLabels, data: PreparedData, out: Path, request: Request) -> dict[str, Any]:
    """Write the outputs of a store or an ensemble into a new folder, and return its card.

    Args:
        store: with the outputs.
        data: the prepared dataset of the store, which has the samples' names.
        out: the folder; it appears when it is complete.
        request: its form.

    Raises:
        ConfigError: the folder has files already, or pyarrow is not installed.
        DataError: two samples have one key, or an output exceeds float16.
        MismatchError: the store lacks a sample.
        LockedError: another process writes the same folder.
    """
    _require_new(out)
    write = _tars if request.form == "wds" else _tables
    with _appearing(out) as folder:
        layout = _layout(request, _keys(data.train, request.form)) if request.like else None
        samples: dict[str, int] = {}
        for outputs in _outputs(store, data, request):
            write(folder, outputs, request, layout if outputs.split == _TRAIN else None)
            samples[outputs.split] = len(outputs.keys)
        card = {**_card(store, data, request, folder), "samples": samples}
        write_json(folder / CARD, card)
    return card


# The outputs of a store.


def _outputs(store: SoftLabels, data: PreparedData, request: Request) -> Iterator[Outputs]:
    """Yield the views of the training samples, and the held-out samples that the store has."""
    keys, places = _keys(data.train, request.form), store.rows_of(data.train)
    for view in range(store.n_views):
        encoded = store.encoded_view(view)
        decode = partial(_decoded, store, encoded, places, half=request.half)
        yield Outputs(split=_TRAIN, view=view, keys=keys, values=decode)
    for name in _HELD_OUT:
        split: Split = getattr(data, name)
        held = store.held_out(name, split)
        if held is not None:
            whole = _as_written(held.numpy(), half=request.half)
            keys = _keys(split, request.form)
            yield Outputs(split=name, view=None, keys=keys, values=whole.__getitem__)


def _decoded(
    store: SoftLabels,
    encoded: Mapping[str, NDArray[Any]],
    places: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    half: bool,
) -> Values:
    """Return the outputs (b, C) of some training samples (b,).

    Args:
        store: of the view.
        encoded: one view, in the order of the store.
        places: (N,) row of each training sample in the store.
        rows: (b,) rows of the training split.
        half: as float16.
    """
    some = places[rows]
    batch = {name: torch.from_numpy(values[some]) for name, values in encoded.items()}
    return _as_written(store.codec.decode(batch).numpy(), half=half)


def _as_written(values: Values, *, half: bool) -> Values:
    """Return outputs (b, C) in little-endian float16 or float32.

    Raises:
        DataError: a finite output is none in float16.
    """
    with np.errstate(over="ignore"):
        written: Values = values.astype("<f2" if half else "<f4")
    if half and not np.isfinite(written).all():
        largest = float(np.abs(values).max())
        raise DataError(
            f"--fp16: an output is {largest:g}; expected at most {np.finfo(np.float16).max:g}, the largest "
            "number of float16; leave --fp16 out"
        )
    return written


def _keys(split: Split, form: str) -> list[str]:
    """Return the key of each sample (N,): its name; for tars without suffix, as WebDataset cuts it.

    Raises:
        DataError: two samples have one key.
    """
    if form != "wds":
        return list(split.names)
    keys = [_key(name) for name in split.names]
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if before != row:
            raise DataError(
                f"samples {quoted(split.names[before])} and {quoted(split.names[row])} have one key in a "
                f"tar, {quoted(key)}; expected names that differ before the first dot; use --format parquet"
            )
    return keys


def _key(name: str) -> str:
    found = split_name(name)
    return name.removeprefix("./") if found is None else found[0]


# Tars.


def _layout(request: Request, keys: Sequence[str]) -> Layout:
    """Return the name of each tar of `like`, and the rows (n,) of its samples in its order."""
    rows = {key: row for row, key in enumerate(keys)}
    layout: list[tuple[str, NDArray[np.int64]]] = []
    unknown = found = 0
    for path in request.like:
        members, _ = list_members(path)
        order = list(dict.fromkeys(member.key for member in members))
        here = [rows[key] for key in order if key in rows]
        layout.append((path.name, np.array(here, np.int64)))
        found, unknown = found + len(here), unknown + len(order) - len(here)
    names = [name for name, _ in layout]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        problem = f"has two tars of one name, {first_of(twice)}" if twice else "has no key of the dump"
        raise ConfigError(
            f"--like {problem}; expected the tars of its training samples; correct the pattern, or leave "
            "it out"
        )
    note(
        f"--like: {found:,} of {counted(len(keys), 'training sample')} are in these tars; {unknown:,} keys "
        "of the tars have no outputs of views, e.g. validation samples"
    )
    return layout


def _tars(
    folder: Path,
    outputs: Outputs,
    request: Request,
    layout: Layout | None,
) -> None:
    """Write a view as tars of one array per sample."""
    inside = folder / (_PLAIN if outputs.view is None else f"view-{outputs.label}")
    every = np.arange(len(outputs.keys))
    for number in range(0 if layout else -(-len(every) // request.shard_rows)):
        rows = every[number * request.shard_rows : (number + 1) * request.shard_rows]
        name = f"{outputs.split}-{number:06d}.tar"
        write_atomic(inside / name, partial(_write_tar, outputs=outputs, rows=rows))
    for name, rows in layout or ():
        write_atomic(inside / name, partial(_write_tar, outputs=outputs, rows=rows))


def _write_tar(file: IO[bytes], *, outputs: Outputs, rows: NDArray[np.int64]) -> None:
    # Members have no clock, owner or path: equal outputs give equal bytes.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for keys, values in outputs.batches(rows):
            for key, row in zip(keys, values, strict=True):
                buffer = io.BytesIO()
                np.save(buffer, row, allow_pickle=False)
                info = tarfile.TarInfo(f"{key}.{outputs.label}.npy")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


# Parquet.


def _tables(folder: Path, outputs: Outputs, request: Request, layout: Layout | None) -> None:
    """Write a view as one Parquet file."""
    arrow = require_pyarrow("--format parquet")
    name = outputs.split if outputs.view is None else f"{outputs.split}-view-{outputs.label}"
    kind = arrow.float16() if request.half else arrow.float32()
    schema = arrow.schema({"key": arrow.string(), "view": arrow.int32(), "logits": arrow.list_(kind)})
    write_atomic(folder / f"{name}.parquet", partial(_write_table, schema=schema, outputs=outputs))


def _write_table(file: IO[bytes], *, schema: Any, outputs: Outputs) -> None:
    arrow = require_pyarrow("--format parquet")
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema) as writer:
        for keys, values in outputs.batches(np.arange(len(outputs.keys))):
            flat = arrow.array(
                np.ascontiguousarray(values).reshape(-1), schema.field("logits").type.value_type
            )
            ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            logits = arrow.ListArray.from_arrays(arrow.array(ends), flat)
            views = arrow.array([outputs.view] * len(keys), arrow.int32())
            table = arrow.table([arrow.array(keys, arrow.string()), views, logits], schema=schema)
            writer.write_table(table)


# The folder and its card.


def _card(store: SoftLabels, data: PreparedData, request: Request, folder: Path) -> dict[str, Any]:
    summary, names = store.summary(), task_of(store.teacher).names_outputs
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "about": _ABOUT,
        "format": request.form,
        "dtype": "float16" if request.half else "float32",
        "classes": list(data.classes) if names else None,
        "n_classes": store.n_classes,
        "link": store.measures.link,
        "teachers": list(store.teacher_names),
        "codec": summary["codec"],
        "fidelity": summary["fidelity"],
        "fingerprint": summary["fingerprint"],
        "views": dict(store.views),
        "n_views": store.n_views,
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
            for path in files
        },
        "written_by": f"softlabel-pipeline {program_version()}",
    }


def _require_new(out: Path) -> None:
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out}: exists already; nothing is overwritten; expected a new folder; choose a "
            "different one, or move it away"
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, and rename it to that at the end; after an error, remove it.

    A killed export leaves `.NAME.partial`, which the next one of the same name empties.
    """
    folder = out.absolute().with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(handle, folder, out)
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield folder
            os.rename(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_folder(out.absolute().parent)
    finally:
        os.close(handle)


def _hold(handle: int, folder: Path, out: Path) -> None:
    """Lock a folder against another export of the same name."""
    busy = LockedError(
        f"{out}: another export of this name is running; expected one at a time; wait for it, or choose a "
        "different folder"
    )
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    # It may have been renamed before it was locked.
    if not folder.exists() or not os.path.samestat(os.fstat(handle), os.stat(folder)):
        raise busy
