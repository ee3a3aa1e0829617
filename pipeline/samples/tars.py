"""Tars as folders of samples: their members by key and suffix, as WebDataset has them.

    train-000.tar     cat/0001.jpg  cat/0001.cls  cat/0002.jpg  cat/0002.cls
    key "cat/0001"    suffix "jpg" -> bytes 512 to 9,411; suffix "cls" -> bytes 10,240 to 10,241

A key is a member's name up to the first dot of its last part. Only headers are read here. A tar without its
end mark was cut, and is refused.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.core.errors import DataError, brief
from pipeline.samples.containers import File
from pipeline.samples.samples import LeftOut

_BLOCK_BYTES = 512
# Each begins a compressed file: gzip, zstd, bzip2, xz.
_COMPRESSED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"
_FORGET_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar.

    Args:
        key: of its sample.
        suffix: the rest of its name in lower case, without the first dot, e.g. jpg or seg.png.
        start: of its bytes in the tar.
        length: in bytes.
        name: as the tar has it.
    """

    key: str
    suffix: str
    start: int
    length: int
    name: str


def list_members(path: File) -> tuple[list[Member], LeftOut]:
    """Return the files inside a tar in order, and counts of members that are none.

    Raises:
        DataError: not a tar, a compressed one, or one that was cut.
    """
    members, links, hidden = [], 0, 0
    try:
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in _infos(tar):
                named = split_name(info.name)
                if info.isdir():
                    continue
                if not info.isreg() or info.sparse is not None:
                    links += 1
                elif named is None:
                    hidden += 1
                else:
                    members.append(Member(*named, info.offset_data, info.size, info.name))
            _require_end(path, file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(_refusal(path, error)) from None
    suffixes = Counter({"link or device": links} if links else {})
    return members, LeftOut(suffixes=suffixes, hidden=hidden)


def _opened(path: File) -> IO[bytes]:
    return path.open("rb") if isinstance(path, Path) else path.open()


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and suffix of a member's name; None for hidden files and files without a suffix.

    >>> split_name("./cat/0001.seg.PNG"), split_name("cat/.DS_Store"), split_name("README")
    (('cat/0001', 'seg.png'), None, None)
    """
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = last.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem and dot else None


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar without keeping them: tarfile would hold a kilobyte for each."""
    kept: list[tarfile.TarInfo] = vars(tar)["members"]
    while (info := tar.next()) is not None:
        yield info
        if len(kept) > _FORGET_EVERY:
            kept.clear()


def _require_end(path: File, file: IO[bytes], place: int) -> None:
    """Refuse a tar whose headers end before its end mark, or with members behind that.

    Args:
        path: of the tar.
        file: the tar, open.
        place: byte at which tarfile ended: it takes a cut or damaged header for the end.
    """
    file.seek(place)
    mark = file.read(_BLOCK_BYTES)
    if len(mark) < _BLOCK_BYTES or any(mark):
        found = "ends" if len(mark) < _BLOCK_BYTES else "has a damaged header"
        raise DataError(
            f"{path}: {found} at byte {place:,}, before the end mark of a tar; expected a whole tar; copy "
            "or write it again"
        )
    while block := file.read(1 << 20):
        if any(block):
            raise DataError(
                f"{path}: has data behind the end mark at byte {place:,}, e.g. a second tar; expected one "
                "tar; write the members into one, or divide the file"
            )


def _refusal(path: File, error: Exception) -> str:
    if isinstance(path, Path) and not path.is_file():
        return f"{path}: not a readable file; expected a tar; correct data.source"
    with _opened(path) as file:
        begin = file.read(8)
    if begin.startswith(_COMPRESSED):
        return (
            f"{path}: is compressed, so no member can be read alone; expected a plain tar; unpack it, e.g. "
            "with gunzip or zstd -d"
        )
    size = path.stat().st_size if isinstance(path, Path) else path.size
    return (
        f"{path}: not a whole tar ({size:,} bytes: {brief(error)}); expected one written to its end; copy "
        "or write it again"
    )
