"""Ensemble of teachers: a store without logits that refers to several stores of the same views.

    NAME.zarr/manifest.json    names and digests of the members, average and weights

Members lie beside it. A reader gets the rows of every member's arrays at once; decoding averages them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.base import Derivation
from pipeline.codecs.blend import SEPARATOR, Blend
from pipeline.codecs.rule import Measures
from pipeline.core.errors import CorruptStoreError, MismatchError, StoreError
from pipeline.core.files import json_bytes
from pipeline.core.hashing import spec_digest
from pipeline.places.addresses import removal
from pipeline.places.folder import Root, at
from pipeline.places.location import Address, Location
from pipeline.samples.labels import LabelWords
from pipeline.samples.packed import Split
from pipeline.store.arrays import reason
from pipeline.store.commands import restoring
from pipeline.store.index import ABSENT
from pipeline.store.labels import LabelChanges, compared_with, digest_of_present
from pipeline.store.layout import MANIFEST, ZARR_JSON
from pipeline.store.reader import LogitStore
from pipeline.store.reference import beside, open_referred, read_reference, sealed
from pipeline.store.wire import EnsembleForm

_DECODED_AT_ONCE = 4096


class Ensemble:
    """Read complete stores of the same views as one, with a `LogitStore`'s interface for training.

    Args:
        location: of the ensemble.
        members: open stores, by their names beside it.
        blend: the average.
        teacher_top1: of the average, on the test images.
        labels: digest of the labels by which that was measured; None in ensembles of older versions.

    Raises:
        MismatchError: views, samples or classes of the members differ.
    """

    def __init__(
        self,
        location: Location,
        members: Mapping[str, LogitStore],
        blend: Blend,
        *,
        teacher_top1: float | None = None,
        labels: str | None = None,
    ) -> None:
        self.location, self.names, self.members = location, tuple(members), tuple(members.values())
        self.teacher_top1, self.labels = teacher_top1, labels
        self._first = self.members[0]
        # (N,) each: the rows of the first member's samples in every member.
        self._places = [member.sections["train"].index.find(self._first.keys) for member in self.members]
        _require_alike(location, self.members, self._places)
        self.blend = replace(blend, link=self.measures.link)
        self.codec = self.blend.decoder([member.codec for member in self.members])

    @property
    def derivation(self) -> Derivation:
        """The average."""
        return self.blend

    @property
    def n_views(self) -> int:
        """V, the number of training views: the smallest number of any member."""
        return min(member.n_views for member in self.members)

    @property
    def n_samples(self) -> int:
        """N, the number of training samples."""
        return self._first.n_samples

    @property
    def n_classes(self) -> int:
        """C, the number of classes."""
        return self._first.n_classes

    @property
    def measures(self) -> Measures:
        """The link of the outputs, which all members share."""
        return self.members[0].measures

    @property
    def views(self) -> Mapping[str, Any]:
        """The views that the teachers saw, in the canonical form of their spec."""
        return self._first.views

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Name, precision and card of the first teacher as plain values."""
        return self._first.teacher

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The names of all teachers."""
        return tuple(name for member in self.members for name in member.teacher_names)

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the soft labels."""
        members = [member.identity() for member in self.members]
        return {"members": members, "average": self.blend.average, "weights": list(self.blend.weights)}

    def rows_of(self, images: Split) -> NDArray[np.int64]:
        """Return the training row of each sample of a split."""
        for other in self.members[1:]:
            other.rows_of(images)
        return self._first.rows_of(images)

    def blocks_of(self, images: Split) -> NDArray[np.int64]:
        """Return the block of each sample (N,); views mix samples only within a block.

        Raises:
            MismatchError: members have different blocks, or samples are missing from the split.
        """
        self.require_same_blocks()
        return self._first.blocks_of(images)

    def require_same_blocks(self) -> None:
        """Refuse members whose views mix different samples.

        Raises:
            MismatchError: names two such members.
        """
        for other in self.members[1:]:
            if _blocks_differ(self._first, other):
                raise _unlike(self.location, self._first, other, "groups of mixed samples")

    def encoded_view(self, view: int, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Read one training view of every member without decoding, or some rows (n,) of the first one."""
        places = self._places if rows is None else [there[rows] for there in self._places]
        return {
            f"{place}{SEPARATOR}{name}": values
            for place, (member, there) in enumerate(zip(self.members, places, strict=True))
            for name, values in member.encoded_view(view, there).items()
        }

    def view(self, view: int) -> Tensor:
        """Read one training view: (N, C) float32 outputs; of a softmax, each row's maximum is 0."""
        arrays = {name: torch.from_numpy(values) for name, values in self.encoded_view(view).items()}
        chunks = range(0, self.n_samples, _DECODED_AT_ONCE)
        some = ({name: a[row : row + _DECODED_AT_ONCE] for name, a in arrays.items()} for row in chunks)
        return torch.cat([self.codec.decode(rows) for rows in some])

    def held_out(self, name: str, images: Split) -> Tensor | None:
        """Return the average logits of un-augmented samples, in the split's order, or None."""
        each = [logits for m in self.members if (logits := m.held_out(name, images)) is not None]
        return self.blend.blend(each) if len(each) == len(self.members) else None

    def label_changes(self, present: LabelWords) -> LabelChanges:
        """Compare the labels that its accuracy is by with those of the data, by split."""
        return compared_with(self.labels, self._first.index, present)

    def summary(self) -> dict[str, Any]:
        """Return figures with a store's keys; figures of a codec are None."""
        each = [member.summary() for member in self.members]
        return {
            **each[0],
            "n_views": self.n_views,
            "codec": "ensemble",
            "bytes": sum(one["bytes"] for one in each),
            "bytes_per_sample_view": sum(one["bytes_per_sample_view"] for one in each),
            "shards": {key: sum(one["shards"][key] for one in each) for key in ("total", "done")},
            "fingerprint": {
                part: spec_digest([one["fingerprint"][part] for one in each])
                for part in each[0]["fingerprint"]
            },
            "labels_digest": self.labels,
            "fidelity": dict.fromkeys(each[0]["fidelity"]),
            "teacher_top1": self.teacher_top1,
        }

    def write(self, path: Root, teacher_top1: float | None, present: LabelWords) -> None:
        """Write the manifest, which makes the folder an ensemble and replaces an existing one.

        Args:
            path: its folder.
            teacher_top1: of the average, on the test samples.
            present: the labels by which it was measured, by split.
        """
        self.teacher_top1, self.labels = teacher_top1, digest_of_present(self._first.index, present)
        at(path).put(MANIFEST, json_bytes(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the manifest, with its own digest."""
        digests = (member.manifest.digest() for member in self.members)
        return sealed(
            {
                "members": dict(zip(self.names, digests, strict=True)),
                "average": self.blend.average,
                "weights": list(self.blend.weights),
                "teacher_top1": self.teacher_top1,
                **({} if self.labels is None else {"labels": self.labels}),
            }
        )

    @classmethod
    def open(cls, place: Address, *, allow_drift: bool = False, **options: Any) -> Ensemble:
        """Open an ensemble and its members, which lie beside it.

        Args:
            place: a folder or a URL.
            allow_drift: see `LogitStore.open`.
            options: of the URL's file system.

        Raises:
            CorruptStoreError: the manifest changed since it was written.
            MismatchError: a member was rewritten since.
            IncompleteStoreError: a member is missing or unfinished.
        """
        location = Location(place, **options)
        content = read_reference(location, EnsembleForm, "ensemble")
        try:
            blend = _blend_of(content)
        except ValueError as error:
            raise CorruptStoreError(
                f"{location}/{MANIFEST}: not an ensemble's manifest ({reason(error)}); "
                f"{restoring(location)}"
            ) from None
        digests = content["members"]
        members = open_referred(place, digests, "ensemble", allow_drift=allow_drift, **options)
        figures = {"teacher_top1": content["teacher_top1"], "labels": content.get("labels")}
        return cls(location, members, blend, **figures)


def open_members(path: Root, names: Sequence[str], blend: Blend) -> Ensemble:
    """Return the ensemble of stores beside a folder; nothing is written.

    Args:
        path: the ensemble's folder.
        names: of the members, e.g. "main.zarr", in the order of the weights.
        blend: the average.

    Raises:
        MismatchError: views, samples or classes of the members differ.
        StoreError: the folder has a store of logits.
    """
    if at(path).exists(ZARR_JSON):
        raise StoreError(
            f"{path}: is a logit store, but an ensemble was requested; choose a different name, or remove "
            f"the store with: {removal(path)}"
        )
    # In the order of the manifest, whose keys are sorted: the weights are a list beside them.
    order = sorted(range(len(names)), key=lambda place: names[place])
    members = {names[place]: LogitStore.open(beside(path, names[place])) for place in order}
    weights = tuple(blend.weights[place] for place in order)
    return Ensemble(Location(path), members, replace(blend, weights=weights))


def _blend_of(content: Mapping[str, Any]) -> Blend:
    """Return the average that a manifest describes.

    Raises:
        ValueError: the average is unknown, or the number of weights is not the number of members.
    """
    if len(content["weights"]) != len(content["members"]):
        raise ValueError(f"{len(content['weights'])} weights for {len(content['members'])} members")
    return Blend(average=content["average"], weights=tuple(content["weights"]))


def _require_alike(
    location: Location, members: Sequence[LogitStore], places: Sequence[NDArray[np.int64]]
) -> None:
    """Refuse members with different views, classes or samples."""
    first = members[0]
    for other, found in zip(members[1:], places[1:], strict=True):
        for what, differs in (
            ("views", other.views != first.views),
            ("classes", other.n_classes != first.n_classes),
            ("outputs", other.measures.link != first.measures.link),
            ("samples", bool((found == ABSENT).any()) or other.n_samples != first.n_samples),
        ):
            if differs:
                raise _unlike(location, first, other, what)


def _unlike(location: Location, first: LogitStore, other: LogitStore, what: str) -> MismatchError:
    return MismatchError(
        f"{location}: {first.location} and {other.location} have different {what}; expected the same "
        "views of the same samples; choose other dumps, or redo one of them"
    )


def _blocks_differ(first: LogitStore, other: LogitStore) -> bool:
    same_rows = first.manifest.layout.shard_rows == other.manifest.layout.shard_rows
    return not same_rows or not np.array_equal(first.keys, other.keys)
