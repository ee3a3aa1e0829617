"""WebDataset tars: members of one key are a sample, its image by suffix, its label by another member.

    cat/0001.jpg  cat/0001.cls  cat/0001.json        key cat/0001, whichever tar has it

A key is a sample's name. So moving, renaming or re-sharding tars changes no view and no split that is
drawn by name.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import ConfigError, DataError, first_of, quoted
from pipeline.modalities.images.decoding import SUFFIXES
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.sources.parts import (
    NONE,
    Found,
    Rows,
    further_files,
    joined,
    parts_of,
    refuse_all,
)
from pipeline.places.objects import is_object_address
from pipeline.samples.containers import Cell, Container, Content, File, read_range
from pipeline.samples.objects import find_objects
from pipeline.samples.parts import UNLABELLED_PART, relative_name
from pipeline.samples.samples import LeftOut
from pipeline.samples.tars import Member, list_members

_CLASS, _JSON = "cls", "json"
_MOST_LABEL_BYTES = 1 << 20
_SHOWN = 5
# The tars of each split, in order; all of them; and files that tell no split.
_Tars = tuple[Mapping[str, Sequence[File]], Container, LeftOut]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The members that make a sample.

    Args:
        images: suffixes of its image, without the first dot.
        label: suffix of its label; None for none.
        key: of the label in a JSON member; "" for the whole value.
    """

    images: frozenset[str]
    label: str | None
    key: str

    @classmethod
    def of(cls, options: ImageOptions) -> _Wanted:
        """Read `data.image` and `data.label`."""
        images = [f".{part.strip()}" for part in options.image.split(";")] if options.image else SUFFIXES
        label, _, key = (options.label or _CLASS).lstrip(".").partition(":")
        if key and label != _JSON:
            raise ConfigError(
                f"data.label is {quoted(options.label)}; expected the suffix of a member, e.g. cls or txt, "
                "or json:KEY; correct it"
            )
        kept = frozenset(image.removeprefix(".").removeprefix(".").lower() for image in images)
        return cls(images=kept, label=None if label == NONE else label.lower(), key=key)


def open_wds(detail: str, options: ImageOptions) -> ImageSource:
    """Open tars by a pattern, or a folder of tars whose names tell their splits.

    Raises:
        DataError: a tar that is missing, cut or compressed; samples without image or label; a key twice.
    """
    wanted = _Wanted.of(options)
    files, container, left_out = (_in_bucket if is_object_address(detail) else _in_folder)(detail, options)
    numbers = {container.file(part): part for part in range(len(container.parts))}
    reader, rows = _Reader(container, wanted, numbers), {}
    for split, some in files.items():
        rows[split], counts = reader.rows(some, needs_labels=split != UNLABELLED_PART)
        left_out += counts
    found = Found(where=f"wds:{detail}", rows=rows, container=container, left_out=left_out)
    return joined(found, options)


def _in_folder(detail: str, options: ImageOptions) -> _Tars:
    parts = parts_of(detail, ".tar", options)
    names = tuple(relative_name(path, parts.root) for path in parts.paths)
    return parts.files, Container(kind="tar", root=parts.root, parts=names), parts.left_out


def _in_bucket(detail: str, options: ImageOptions) -> _Tars:
    found = find_objects(detail, ".tar", further_files(options))
    tars = list(dict.fromkeys(file for some in found.files.values() for file in some))
    return (
        found.files,
        Container(
            kind="tar",
            root=found.root,
            parts=tuple(tar.name for tar in tars),
            objects=tuple((tar.size, tar.tag) for tar in tars),
        ),
        found.left_out,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the samples of tars.

    Args:
        container: of the tars of all splits.
        wanted: the members that make a sample.
        numbers: file -> number of a tar in the container.
    """

    container: Container
    wanted: _Wanted
    numbers: Mapping[File, int]

    def rows(self, paths: Sequence[File], *, needs_labels: bool) -> tuple[Rows, LeftOut]:
        """Return the samples of a split's tars in order, and counts of members that are not read."""
        rows = Rows(names=[], values=[], files=[])
        left_out, faults = LeftOut(), _Faults()
        for path in paths:
            try:
                members, counts = list_members(path)
            except DataError as error:
                faults.tars.append(str(error))
                continue
            left_out += counts + self._unread(members)
            for key, group in _by_key(path, members, faults).items():
                self._add(rows, path, key, group, faults, needs_label=needs_labels)
        faults.refuse(self.wanted)
        return rows, left_out

    def _add(
        self,
        rows: Rows,
        path: File,
        key: str,
        group: Mapping[str, Member],
        faults: _Faults,
        *,
        needs_label: bool,
    ) -> None:
        """Append a sample, or note why it is none."""
        images = [suffix for suffix in group if suffix in self.wanted.images]
        label = None if self.wanted.label is None or not needs_label else group.get(self.wanted.label)
        if len(images) != 1:
            (faults.without_image if not images else faults.of_several).append(_described(path, key, group))
            return
        if label is None and self.wanted.label is not None and needs_label:
            faults.without_label.append(_described(path, key, group))
            return
        image = group[images[0]]
        rows.names.append(key)
        rows.files.append(_name_of(path, image.name))
        rows.values.append(None if label is None else self._value(path, label, faults))
        place = Cell(self.numbers[path], image.start, image.length)
        rows.contents.append(Content(self.container, place))

    def _value(self, path: File, member: Member, faults: _Faults) -> Any:
        """Return the label in a member: text, JSON or an array."""
        try:
            if member.length > _MOST_LABEL_BYTES:
                raise ValueError(f"{member.length:,} bytes")
            content = read_range(path, member.start, member.length).tobytes()
            if member.suffix == "npy":
                return np.load(io.BytesIO(content), allow_pickle=False)
            text = content.decode()
            if member.suffix.rpartition(".")[2] != _JSON:
                return sys.intern(text)  # a million samples have a thousand labels
            value = json.loads(text)
            return value[self.wanted.key] if self.wanted.key else value
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            faults.unread.append(f"{_name_of(path, member.name)} ({quoted(reason, 80)})")
            return None

    def _unread(self, members: Sequence[Member]) -> LeftOut:
        """Count the members that are neither image nor label."""
        used = {*self.wanted.images, self.wanted.label}
        return LeftOut(suffixes=Counter(f".{m.suffix}" for m in members if m.suffix not in used))


def _by_key(path: File, members: Sequence[Member], faults: _Faults) -> dict[str, dict[str, Member]]:
    """Return the members of a tar by key and suffix, in the order of the keys."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        group = groups.setdefault(member.key, {})
        if member.suffix in group:
            faults.twice.append(_name_of(path, member.name))
        group[member.suffix] = member
    return groups


def _name_of(tar: File, member: str) -> str:
    """Return the name of a member for messages: of ./a.jpg in a folder's t.tar, t.tar/a.jpg."""
    return str(tar / member) if isinstance(tar, Path) else f"{tar}/{member.removeprefix('./')}"


def _described(path: File, key: str, group: Mapping[str, Member]) -> str:
    return f"{_name_of(path, key)} has .{', .'.join(list(group)[:_SHOWN])}"


class _Faults:
    """The members and samples that cannot be used, found in all tars before one error names them."""

    def __init__(self) -> None:
        self.tars: list[str] = []
        self.twice: list[str] = []
        self.without_image: list[str] = []
        self.of_several: list[str] = []
        self.without_label: list[str] = []
        self.unread: list[str] = []

    def refuse(self, wanted: _Wanted) -> None:
        """Refuse all of one kind.

        Raises:
            DataError: there are any.
        """
        if self.tars:
            others = f" ({len(self.tars) - 1:,} more tars cannot be read)" if len(self.tars) > 1 else ""
            raise DataError(f"{self.tars[0]}{others}")
        label, images = wanted.label, first_of([f".{suffix}" for suffix in sorted(wanted.images)], _SHOWN)
        refuse_all(
            self.twice,
            "each member once; write the tar again",
            fault="members of one name and suffix as another one",
        )
        refuse_all(
            self.without_image,
            f"an image, {images}; set data.image to the suffix of yours, or remove them",
            fault="samples without an image",
        )
        refuse_all(
            self.of_several,
            "one; set data.image to the suffix of the right one",
            fault="samples with several images",
        )
        refuse_all(
            self.without_label,
            f".{label}; set data.label to the suffix of yours, e.g. txt, json:KEY or none, or name their "
            "tars in data.unlabelled_files",
            fault=f"samples without a label .{label}",
        )
        refuse_all(
            self.unread,
            f"text, JSON or an array in .{label}{f' with {wanted.key!r}' if wanted.key else ''}; correct "
            "data.label, or write them again",
            fault="labels that cannot be read",
        )
