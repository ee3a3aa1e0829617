"""The header: a store's planned content and its origin, in its root's attributes.

It is written before the first shard, so that a resumed run knows the plan of the run before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.codecs import Codec, codec_fingerprint, find_codec, is_own_codec
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    MismatchError,
    ModelError,
    StoreError,
    quoted,
)
from pipeline.core.files import json_bytes, parse_object
from pipeline.core.forms import require_form
from pipeline.core.hashing import Described, canonical_json, difference, spec_digest
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.places.place import Tag
from pipeline.store.arrays import reading, reason
from pipeline.store.commands import dump_command, restoring
from pipeline.store.layout import SCHEMA, SCHEMAS, ZARR_JSON, Layout
from pipeline.store.wire import HeaderForm, require_plain

_MOST_BYTES = 1 << 26
_READ = " and ".join(map(str, SCHEMAS))
_MOST_VIEW_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Digests of everything that determines a store's content.

    Args:
        dataset: keys and contents of the samples of all splits; in stores without labels of their own
            (schema 3), the contents include the labels.
        teacher: weights, preprocessing and precision.
        views: the view spec without the number of views.
        codec: name and version, and a digest of the codec's state.
    """

    dataset: str
    teacher: str
    views: str
    codec: str

    def to_dict(self) -> dict[str, str]:
        """Return the digests as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A store's planned content and its origin.

    Args:
        layout: arrays, sections and shards.
        fingerprint: digests of the origin.
        teacher: name, card and precision of the teacher.
        views: canonical form of the view spec.
        codec_spec: the requested codec; the layout has the resulting one.
        batch_size: samples per forward pass, on which a logit's last bits may depend.
        versions: of the decoder, torch and torchvision at the start.
        schema: of the store's bookkeeping.
        labels: digest of the labels at the dump, which decide no output and are never refused; None if the
            store has no labels of its own, and `fingerprint.dataset` covers them.
    """

    layout: Layout
    fingerprint: Fingerprint
    teacher: dict[str, Any]
    views: dict[str, Any]
    codec_spec: CodecSpec
    batch_size: int
    versions: dict[str, str]
    schema: int = SCHEMA
    labels: str | None = None

    @property
    def origin(self) -> str:
        """The digest of teacher, views and codec, which never change; a catalogue has it."""
        made = self.fingerprint.to_dict()
        return spec_digest({name: made[name] for name in ("teacher", "views", "codec")})

    def to_dict(self) -> dict[str, Any]:
        """Return the header as plain values, with the schema."""
        return {
            "schema": self.schema,
            "layout": self.layout.to_dict(),
            "fingerprint": self.fingerprint.to_dict(),
            "teacher": self.teacher,
            "views": self.views,
            "codec_spec": self.codec_spec.to_dict(),
            "batch_size": self.batch_size,
            "versions": self.versions,
            **({} if self.labels is None else {"labels": self.labels}),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], origin: Path | str) -> Header:
        """Return the header that `to_dict` described.

        Args:
            value: as `to_dict` returns it.
            origin: the file, for errors.

        Raises:
            StoreError: the schema is different.
            CorruptStoreError: the value is no header.
        """
        schema = value.get("schema")
        if type(schema) is not int or schema not in SCHEMAS:
            raise StoreError(
                f"{origin}: schema {quoted(schema)}, but this program reads {_READ}; use "
                " the version that wrote it, or dump again under a new name"
            )
        try:
            require_form(HeaderForm, value)
            header = cls(
                layout=Layout.from_dict(value["layout"]),
                fingerprint=Fingerprint(**value["fingerprint"]),
                teacher=value["teacher"],
                views=value["views"],
                codec_spec=CodecSpec(**value["codec_spec"]),
                batch_size=value["batch_size"],
                versions=value["versions"],
                schema=schema,
                labels=value.get("labels"),
            )
            header._require_consistent()
        except (KeyError, TypeError, ValueError, ModelError, RecursionError) as error:
            raise CorruptStoreError(
                f"{origin}: not a store header ({reason(error)}); {restoring(origin)}"
            ) from None
        return header

    def _require_consistent(self) -> None:
        """Refuse a header that no dump produces: teacher, views and layout contradict each other.

        Raises:
            ValueError, ModelError: says which part.
        """
        teacher = self.teacher
        if len(teacher["classes"]) != self.layout.n_classes:
            raise ValueError(
                f"{self.layout.n_classes} classes, but the teacher has {len(teacher['classes'])}"
            )
        if self.layout.keeps_labels != (self.labels is not None):
            raise ValueError("its labels and their digest contradict each other")
        if "decoder" not in self.versions:
            raise ValueError("versions lack the decoder")
        digests = self.fingerprint.to_dict().values()
        require_plain(teacher["name"], teacher["architecture"]["name"], self.layout.codec, *digests)
        require_plain(*self.versions, *self.versions.values())
        if len(canonical_json(self.views)) > _MOST_VIEW_CHARACTERS:
            raise ValueError(f"its views take more than {_MOST_VIEW_CHARACTERS:,} characters")

    @classmethod
    def read(cls, location: Location) -> Header:
        """Read the header of a complete or unfinished store.

        Raises:
            IncompleteStoreError: there is no store.
            StoreError: the schema is different.
            CorruptStoreError: the file is no header.
        """
        content = location.find(ZARR_JSON, _MOST_BYTES)
        if content is None:
            raise IncompleteStoreError(
                f"{location}: no such store ({ZARR_JSON} is missing); run: "
                f"{dump_command(location)}, or dvc pull"
            )
        return cls.parse(content, f"{location}/{ZARR_JSON}")

    @classmethod
    def parse(cls, content: bytes, origin: str) -> Header:
        """Return the header in the content of a root's zarr.json.

        Args:
            content: bytes of the file.
            origin: the file, for errors.

        Raises:
            StoreError: the schema is different.
            CorruptStoreError: the content is no header.
        """
        try:
            value = dict(parse_object(content)["attributes"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(
                f"{origin}: not a store header ({reason(error)}); {restoring(origin)}"
            ) from None
        return cls.from_dict(value, origin)

    def says_the_same_as(self, other: Header) -> bool:
        """Whether both are equal as JSON: a header from a file has lists instead of tuples."""
        return canonical_json(self.to_dict()) == canonical_json(other.to_dict())

    def extends(self, other: Header) -> bool:
        """Whether a store with this header may have grown, or be growing, from the other's."""
        ours, theirs = self.layout, other.layout
        return (
            replace(self.fingerprint, dataset="") == replace(other.fingerprint, dataset="")
            and ours.shard_rows == theirs.shard_rows
            and all(
                name in ours.sections
                and ours.sections[name].extents[: len(section.extents)] == section.extents
                for name, section in theirs.sections.items()
            )
        )

    def with_views(self, n_views: int) -> Header:
        """Return a header with `n_views` training views."""
        train = replace(self.layout.sections["train"], n_views=n_views)
        return replace(self, layout=self.layout.with_section(train))

    def codec(self, state: Mapping[str, Tensor], origin: str) -> Codec:
        """Return the store's codec.

        Args:
            state: the codec's state, which the store keeps once.
            origin: the store, for errors.

        Raises:
            ConfigError: the codec is user code that was not named, or that makes no codec.
            MismatchError: this program, or the user code, has a different version of the codec.
            CorruptStoreError: the state, or the layout's arrays, changed since they were written.
        """
        name, n_classes, arrays = self.layout.codec, self.layout.n_classes, dict(self.layout.arrays)
        if is_own_codec(name):
            # Not `reading`: failures of user code are no damage of the store.
            codec = find_codec(name, n_classes)
        else:
            with reading(origin, "the codec's shared arrays"):
                codec = find_codec(name, n_classes, state, absolute=self.layout.measures.is_absolute)
                if (codec.name, dict(codec.arrays)) != (name, arrays):
                    raise ValueError(f"codec {codec.name} has different arrays than the layout")
        expected, found = self.fingerprint.codec, codec_fingerprint(codec)
        if found == expected and dict(codec.arrays) == arrays:
            return codec
        made, ours = (re.sub(r"\.[0-9a-f]{64}$", "", text) for text in (expected, found))
        if made != ours:
            raise MismatchError(
                f"{origin}: written with codec {made}, but this program has {ours}; use the version that "
                "wrote it, or make a new dump"
            )
        if is_own_codec(name):
            raise MismatchError(
                f"{origin}: written with different arrays than codec {name} has now; use the code that "
                "wrote it, or raise its version and make a new dump"
            )
        raise CorruptStoreError(
            f"{origin}: the codec's shared arrays have changed since they were written; {restoring(origin)}"
        )

    def teacher_difference(self, teacher: Described) -> str:
        """Say how a teacher's description differs from the store's, ignoring its name."""
        described = ({**some, "name": None} for some in (self.teacher, teacher.plain))
        return difference(*described)

    def require_teacher(self, teacher: Described, origin: str) -> None:
        """Refuse a teacher other than the one that made the store.

        Raises:
            MismatchError: names the difference: weights, preprocessing, classes or precision.
        """
        if teacher.digest != self.fingerprint.teacher:
            what = self.teacher_difference(teacher) or f"its weights are {teacher.digest[:12]}"
            name = teacher.plain["name"]
            raise MismatchError(
                f"{origin}: written by a different teacher than {name}, which was trained again since, "
                f"e.g. on changed data, or replaced ({what}); restore the original checkpoint, or make a "
                "dump of a new name"
            )

    def to_bytes(self) -> bytes:
        """Return the root's zarr.json: a group with the header as its attributes."""
        return json_bytes({"attributes": self.to_dict(), "zarr_format": 3, "node_type": "group"})

    def write(self, store: Root) -> None:
        """Write the root's zarr.json, whatever is there."""
        at(store).put(ZARR_JSON, self.to_bytes())

    def publish(self, store: Root, replaced: Tag | None) -> bool:
        """Write the root's zarr.json, unless another process has written a different one meanwhile.

        Args:
            store: its folder or place.
            replaced: the tag of the file that this one replaces; None if there is none.

        Returns:
            Whether the header is there now.
        """
        place, content = at(store), self.to_bytes()
        if replaced is None:
            done = place.put_if_absent(ZARR_JSON, content)
        else:
            done = place.put_if_match(ZARR_JSON, content, replaced)
        return done is not None or place.get(ZARR_JSON) == content
