"""The files of a dataset in a bucket: s3://bucket/train-{000..099}.tar, s3://bucket/tars.

Patterns and folders mean what they do on a local disk (see `parts.py`), but for `**`, which is one folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.core.errors import ConfigError, DataError, counted, first_of, quoted
from pipeline.places.chunks import ChunkedFile
from pipeline.places.objects import ObjectPlace, is_object_address
from pipeline.samples.files import is_hidden, suffix_of
from pipeline.samples.parts import MAGIC, divided, expand
from pipeline.samples.samples import LeftOut
from pipeline.samples.splits import TRAIN

Listed = Mapping[str, ChunkedFile]  # by key in the bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The files of a dataset in one bucket.

    Args:
        root: the lowest folder that contains all files.
        files: split -> its files below the root, in order; `train` always has some.
        left_out: files that tell no split.
    """

    root: ObjectPlace
    files: Mapping[str, Sequence[ChunkedFile]]
    left_out: LeftOut


def find_objects(detail: str, suffix: str, further: Mapping[str, str | None]) -> Objects:
    """Find the files of a dataset in a bucket.

    Args:
        detail: address of a folder, a file, or a pattern with `*`, `?`, `[…]`, `{a,b}` or `{000..099}`.
        suffix: of its files, e.g. .tar.
        further: split -> pattern of its files, or None.

    Raises:
        DataError: no such file; all missing ones of a range are counted.
        ConfigError: a malformed range, or files in several buckets.
        StoreError: the bucket cannot be listed.
    """
    bucket = _bucket(detail)
    given = {split: pattern for split, pattern in further.items() if pattern}
    for pattern in given.values():
        if not is_object_address(pattern) or str(_bucket(pattern)) != str(bucket):
            raise ConfigError(
                f"{quoted(pattern)}: is not in {bucket}, but data.source is; expected all splits in one "
                "bucket; copy them there"
            )
    found = {split: list(_matching(pattern, suffix)) for split, pattern in given.items()}
    left_out = LeftOut()
    if MAGIC.search(detail) or detail.endswith(suffix):
        files = {TRAIN: list(_matching(detail, suffix))}
    else:
        folder = f"{detail.rstrip('/')}/"
        there = {key: file for key, file in _listed(folder).items() if _is_part(key, suffix)}
        names, left_out = divided(detail, sorted(there), suffix)
        files = {split: [there[key] for key in some] for split, some in names.items()}
    return _below_root(bucket, {**files, **found}, left_out)


def _below_root(
    bucket: ObjectPlace, files: Mapping[str, Sequence[ChunkedFile]], left_out: LeftOut
) -> Objects:
    """Return the files relative to the lowest folder that contains them: a bucket's copy keeps names."""
    folders = {file.name.rpartition("/")[0] for some in files.values() for file in some}
    folder = os.path.commonpath(folders)
    root = bucket.below(folder) if folder else bucket

    def moved(file: ChunkedFile) -> ChunkedFile:
        return ChunkedFile(root, file.name[len(folder) :].lstrip("/"), file.size, file.tag)

    return Objects(
        root=root,
        files={split: list(map(moved, some)) for split, some in files.items()},
        left_out=left_out,
    )


def _matching(pattern: str, suffix: str) -> Iterator[ChunkedFile]:
    """Yield the files of a pattern, each once, in the order of its ranges."""
    there, missing = _listed(pattern), []
    found: dict[ChunkedFile, None] = {}
    for key in expand(_key(pattern)):
        depth = key.count("/")
        matches = [there[key]] if key in there else []
        if not matches and MAGIC.search(key):
            known = sorted(name for name in there if name.count("/") == depth and not _is_hidden(name))
            matches = [there[name] for name in known if fnmatchcase(name, key)]
        found |= dict.fromkeys(matches)
        missing += [] if matches else [f"{_bucket(pattern)}/{key}"]
    if missing:
        raise DataError(
            f"{first_of(missing)}: no such file ({counted(len(missing), 'name')} of {quoted(pattern)}); "
            f"expected *{suffix} files; correct data.source, or restore them"
        )
    yield from found


def _listed(pattern: str) -> Listed:
    """List the folder in front of the first sign of a pattern."""
    bucket, fixed = _bucket(pattern), MAGIC.split(_key(pattern))[0].rpartition("/")[0]
    folder = bucket.below(fixed) if fixed else bucket
    above = f"{fixed}/" if fixed else ""
    return {
        f"{above}{name}": ChunkedFile(bucket, f"{above}{name}", size, tag)
        for name, (size, tag) in folder.listed().items()
    }


def _is_part(key: str, suffix: str) -> bool:
    return suffix_of(key) == suffix and not _is_hidden(key)


def _is_hidden(key: str) -> bool:
    return any(map(is_hidden, key.split("/")))


def _bucket(address: str) -> ObjectPlace:
    scheme, _, rest = address.partition("://")
    return ObjectPlace.open(f"{scheme}://{rest.partition('/')[0]}")


def _key(address: str) -> str:
    return address.partition("://")[2].partition("/")[2]
