"""Re-headed store: another last layer over the features of a store beside it; no shard is copied.

    NAME.zarr/manifest.json       name and digest of that store, digest of the head, fidelity with it
    NAME.zarr/head.safetensors    weight (K, D), bias (K,), and groups (K,) if classes are merged

A reader gets the other store's rows. Decoding takes their features through the head. The teacher never
runs, so all views and held-out samples have outputs for the new classes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.codecs.base import Derivation, FeatureDecoder
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.head import Head, ReheadedDecoder, features_of
from pipeline.codecs.rule import Measures, sort_keys
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError, CorruptStoreError
from pipeline.core.files import json_bytes
from pipeline.core.forms import require_form
from pipeline.core.hashing import spec_digest
from pipeline.places.folder import Root, at
from pipeline.places.location import Address, Location
from pipeline.samples.labels import LabelWords
from pipeline.samples.packed import Split
from pipeline.store.arrays import reason
from pipeline.store.commands import dump_command
from pipeline.store.labels import LabelChanges, compared_with
from pipeline.store.layout import HEAD, MANIFEST
from pipeline.store.reader import LogitStore, SectionReader
from pipeline.store.reference import open_referred, read_reference, sealed
from pipeline.store.wire import FidelityForm, ReheadForm, require_plain

_MOST_BYTES = 1 << 32
EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of re-heading a store, besides its outputs.

    Args:
        task: name of the task of the new outputs.
        measures: of that task, with the units that it measured.
        fidelity: cost of the store's codec with the new head, estimated.
        rows: number of rows on which it was estimated.
        scale: factor from the codec's cost on re-encoded rows to the recorded one, for the teacher's head.
        codec_spec: the budget.
        source: the head's origin, e.g. the name of its file.
        digest: SHA-256 (hex) of that file; empty for a probe, which is made from the store and labels.
        penalty: requested for a probe; None if it was chosen.
        teacher_top1: quality of the new outputs on the test samples; None if unknown.
        labels: digest of the labels by which that was measured, and to which a probe was fitted; None in
            stores of older versions.
    """

    task: str
    measures: Measures
    fidelity: Fidelity
    rows: int
    scale: float
    codec_spec: CodecSpec
    source: str
    digest: str = ""
    penalty: float | None = None
    teacher_top1: float | None = None
    labels: str | None = None


class Reheaded:
    """Read a store's outputs through another head, with a `LogitStore`'s interface for training.

    Args:
        location: of the re-headed store.
        name: of the store behind it, e.g. "main.zarr".
        store: that store, open.
        head: the last layer.
        finding: its fidelity and quality.

    Raises:
        ConfigError: the store keeps no features, or the head has another width.
    """

    def __init__(
        self, location: Location, name: str, store: LogitStore, head: Head, finding: Finding
    ) -> None:
        require_features(name, store, head)
        self.location, self.name, self.head, self.finding = location, name, head, finding
        self.members, self._store = (store,), store
        self.codec: ReheadedDecoder = head.decoder([store.codec])
        self.sections = {name: reading_through(store, name, self.codec) for name in store.sections}

    @property
    def derivation(self) -> Derivation:
        """The head."""
        return self.head

    @property
    def n_views(self) -> int:
        """V, the number of training views."""
        return self._store.n_views

    @property
    def n_samples(self) -> int:
        """N, the number of training samples."""
        return self._store.n_samples

    @property
    def n_classes(self) -> int:
        """C, the number of outputs of the head."""
        return len(self.head.classes)

    @property
    def measures(self) -> Measures:
        """The measures of the new outputs."""
        return self.finding.measures

    @property
    def views(self) -> Mapping[str, Any]:
        """The views that the teacher saw, in the canonical form of their spec."""
        return self._store.views

    @cached_property
    def teacher(self) -> Mapping[str, Any]:
        """Name, precision and card of the teacher, with the head's task and classes."""
        return {**self._store.teacher, "task": self.finding.task, "classes": list(self.head.classes)}

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The name of the teacher, as a tuple of one."""
        return self._store.teacher_names

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the soft labels."""
        return {**self._store.identity(), "head": self.head.digest()}

    def rows_of(self, images: Split) -> NDArray[np.int64]:
        """Return the training row of each sample of a split."""
        return self._store.rows_of(images)

    def blocks_of(self, images: Split) -> NDArray[np.int64]:
        """Return the block of each sample (N,); see `LogitStore.blocks_of`."""
        return self._store.blocks_of(images)

    def encoded_view(self, view: int, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Read one training view of the store behind this one, without decoding it, or rows (n,) of it."""
        return self._store.encoded_view(view, rows)

    def view(self, view: int) -> Tensor:
        """Read one training view: (N, C) float32 outputs; of a softmax, each row's maximum is 0."""
        return self.sections["train"].logits(view)

    def held_out(self, name: str, images: Split) -> Tensor | None:
        """Return the outputs for un-augmented samples, in the split's order, or None."""
        if name not in self.sections or not len(images):
            return None
        section = self.sections[name]
        return section.logits(0, section.rows_of(images))

    def label_changes(self, present: LabelWords) -> LabelChanges:
        """Compare the labels that its accuracy, or its probe, is by with those of the data, by split."""
        return compared_with(self.finding.labels, self._store.index, present)

    def summary(self) -> dict[str, Any]:
        """Return figures with a store's keys; bytes are those that it reads from the store behind it."""
        found = self._store.summary()
        fingerprint, digest = found["fingerprint"], self.head.digest()
        return {
            **found,
            "n_classes": self.n_classes,
            "fingerprint": {**fingerprint, "teacher": spec_digest([fingerprint["teacher"], digest])},
            "labels_digest": self.finding.labels,
            "fidelity": self.finding.fidelity.summary(),
            "teacher_top1": self.finding.teacher_top1,
            "rehead": {"of": self.name, "head": self.finding.source, "digest": digest},
        }

    def write(self, path: Root) -> None:
        """Write the head and then the manifest, which replaces an existing one."""
        at(path).put(HEAD, save(self.head.tensors()))
        at(path).put(MANIFEST, json_bytes(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the manifest, with its own digest."""
        finding, head = self.finding, self.head
        return sealed(
            {
                "of": {self.name: self._store.manifest.digest()},
                "head": {
                    "digest": head.digest(),
                    "classes": list(head.classes),
                    "unit": head.unit,
                    "of_outputs": head.of_outputs,
                    "source": finding.source,
                    "file": finding.digest,
                    "penalty": finding.penalty,
                },
                "task": finding.task,
                "measures": finding.measures.to_dict(),
                "fidelity": finding.fidelity.to_dict(),
                "estimate": {"rows": finding.rows, "scale": finding.scale},
                "codec_spec": finding.codec_spec.to_dict(),
                "teacher_top1": finding.teacher_top1,
                **({} if finding.labels is None else {"labels": finding.labels}),
            }
        )

    @classmethod
    def open(cls, place: Address, *, allow_drift: bool = False, **options: Any) -> Reheaded:
        """Open a re-headed store and the store behind it, which lies beside it.

        Args:
            place: a folder or a URL.
            allow_drift: see `LogitStore.open`.
            options: of the URL's file system.

        Raises:
            CorruptStoreError: manifest or head changed since they were written.
            MismatchError: the store behind it was rewritten, or has grown, since.
            IncompleteStoreError: that store is missing or unfinished.
        """
        location = Location(place, **options)
        content = read_reference(location, ReheadForm, "rehead")
        try:
            finding = _finding(content)
            head = _read_head(location, content["head"], finding.measures)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CorruptStoreError(
                f"{location}: not a re-headed store ({reason(error)}); restore it (dvc checkout --force), "
                f"or rebuild it with: {dump_command(location)}"
            ) from None
        digests = content["of"]
        opened = open_referred(place, digests, "rehead", allow_drift=allow_drift, **options)
        ((name, store),) = opened.items()
        return cls(location, name, store, head, finding)


def reading_through(store: LogitStore, section: str, decoder: ReheadedDecoder) -> SectionReader:
    """Return the reader of a store's split that decodes to the outputs of another head."""
    location, manifest = store.location, store.manifest
    return SectionReader(location, manifest, section, lambda: decoder, allow_drift=store.allow_drift)


def require_features(name: str, store: LogitStore, head: Head | None = None) -> FeatureDecoder:
    """Return the decoder of a store's features, for a head of their width.

    Args:
        name: of the store, for errors.
        store: open.
        head: to check; None for any.

    Raises:
        ConfigError: the store keeps no features, or the head has another width.
    """
    try:
        found = features_of(store.codec, of_outputs=is_embedding(store), width=store.n_classes)
    except ConfigError as error:
        raise ConfigError(f"dump {Path(name).stem!r}: {error}") from None
    if head is not None and head.width != found.dim:
        raise ConfigError(
            f"the head has weights of {head.width} features; expected {found.dim}, those of dump "
            f"{Path(name).stem!r}; use a head of the same layer"
        )
    return found


def is_embedding(store: LogitStore) -> bool:
    """Whether the store's outputs are embeddings, which a head reads."""
    return bool(store.teacher.get("task") == EMBEDDING)


def _finding(content: Mapping[str, Any]) -> Finding:
    """Return the figures of a manifest.

    Raises:
        ValueError: a value is out of range, or contradicts another.
    """
    require_form(FidelityForm, sort_keys(content["fidelity"]), "fidelity")
    fidelity, measures = Fidelity.from_dict(content["fidelity"]), Measures.from_dict(content["measures"])
    if not fidelity.measures.are_those_of(measures):
        raise ValueError("its fidelity has different measures")
    require_plain(content["task"], content["head"]["source"])
    return Finding(
        task=content["task"],
        measures=measures,
        fidelity=replace(fidelity, divergences={n: fidelity.divergences[n] for n in measures.divergences}),
        rows=content["estimate"]["rows"],
        scale=content["estimate"]["scale"],
        codec_spec=CodecSpec(**content["codec_spec"]),
        source=content["head"]["source"],
        digest=content["head"]["file"],
        penalty=content["head"]["penalty"],
        teacher_top1=content["teacher_top1"],
        labels=content.get("labels"),
    )


def _read_head(location: Location, said: Mapping[str, Any], measures: Measures) -> Head:
    """Read the head, and compare it with the manifest.

    Raises:
        ValueError: it is missing, of other shapes, or changed.
    """
    content = location.find(HEAD, _MOST_BYTES)
    if content is None:
        raise ValueError(f"{HEAD} is missing")
    tensors, classes = load(content), tuple(said["classes"])
    weight, bias, groups = tensors["weight"], tensors["bias"], tensors.get("groups")
    rows = len(classes) if groups is None else len(groups)
    expected = {"weight": (rows, weight.shape[-1]), "bias": (rows,), "groups": (rows,)}
    wrong = [name for name, values in tensors.items() if tuple(values.shape) != expected.get(name)]
    if wrong or weight.dtype != torch.float32 or bias.dtype != torch.float32:
        raise ValueError(f"{HEAD} has tensors of other shapes or dtypes")
    if groups is not None and sorted(set(groups.tolist()) - {-1}) != list(range(len(classes))):
        raise ValueError(f"{HEAD} has other groups than the manifest has classes")
    head = Head(
        weight=weight,
        bias=bias,
        classes=classes,
        unit=said["unit"],
        groups=groups,
        of_outputs=said["of_outputs"],
        link=measures.link,
    )
    if head.digest() != said["digest"]:
        raise ValueError(f"{HEAD} changed since it was written")
    return head
