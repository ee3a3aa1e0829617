"""Stage one without a teacher: give an existing dump another head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.codecs.head import Head, head_of_codec
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError, MismatchError, ModelError, first_of
from pipeline.core.hashing import file_digest
from pipeline.dump.probe import fit_probe
from pipeline.dump.reencode import recode
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.head_files import read_head
from pipeline.places.folder import Root
from pipeline.places.location import Location
from pipeline.store.labels import digest_of_present, words_of
from pipeline.store.reader import LogitStore
from pipeline.store.reference import beside
from pipeline.store.rehead import Finding, Reheaded, is_embedding, require_features
from pipeline.tasks.table import task_of

PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """A head and its budget.

    Args:
        source: path of a file, or `probe`.
        budget: of the new outputs; its codec's name is not used.
        penalty: of a probe's squared weights; None chooses.
    """

    source: str
    budget: CodecSpec
    penalty: float | None = None

    @property
    def is_probe(self) -> bool:
        """Whether the head is fitted to labels, not read from a file."""
        return self.source == PROBE

    def find(
        self, name: str, store: LogitStore, context: RunContext, labels_N: Callable[[], NDArray[Any]]
    ) -> Head:
        """Read the file, or fit the probe.

        Args:
            name: of the store, for errors.
            store: whose features the head reads.
            context: the data and their task.
            labels_N: returns the labels of the training samples that students may see.
        """
        if self.is_probe:
            return fit_probe(name, store, context, labels_N(), self.penalty)
        require_features(name, store)
        own = None if is_embedding(store) else head_of_codec(store.codec)
        classes = store.teacher["classes"]
        head = read_head(Path(self.source), context.task.measures.link, own, classes)
        return replace(head, of_outputs=is_embedding(store))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the file; empty for a probe.

        Raises:
            ModelError: the file is missing.
        """
        if self.is_probe:
            return ""
        try:
            return file_digest(Path(self.source))
        except OSError as error:
            raise ModelError(f"{self.source}: {error.strerror}; expected the head of this dump") from None

    @property
    def label(self) -> str:
        """The origin of the head for the manifest: the file's name without its folder."""
        return Path(self.source).name


def rehead(path: Root, name: str, spec: HeadSpec, head: Head, context: RunContext) -> Reheaded:
    """Return a re-headed store, with its fidelity and quality; nothing is written.

    Args:
        path: its folder.
        name: of the store beside it, e.g. "main.zarr".
        spec: the head's origin and the budget.
        head: the last layer.
        context: the data; labels of the test split measure the quality.

    Raises:
        ConfigError: the store keeps no features, the head has another width, or the stored features are too
            coarse for it.
        MismatchError: the outputs need a different budget.
    """
    spec.budget.require_link(context.task.measures)
    store = LogitStore.open(beside(path, name))
    require_features(name, store, head)
    rule = task_of(store.teacher).restored(store.measures)
    recoded = recode(store, rule, of_outputs=head.of_outputs)
    task = context.task.fitted(head.outputs(recoded.before))
    fidelity = recoded.fidelity(head, task)
    found = Finding(
        task=task.name,
        measures=task.measures,
        fidelity=fidelity,
        rows=len(recoded.before),
        scale=recoded.scale,
        codec_spec=spec.budget,
        source=spec.label,
        digest=spec.digest(),
        penalty=spec.penalty,
        labels=digest_of_present(store.index, words_of(splits_of(context.data))),
    )
    reheaded = Reheaded(Location(path), name, store, head, found)
    reheaded.finding = replace(found, teacher_top1=_quality(reheaded, context))
    return reheaded


def require_fine(name: str, reheaded: Reheaded, context: RunContext) -> None:
    """Refuse stored features that are too coarse for a head.

    Raises:
        ConfigError: names the estimated cost and the budget.
    """
    finding, budget = reheaded.finding, reheaded.finding.codec_spec.budget
    if budget is None or finding.fidelity.within(budget):
        return
    key = "max_error" if finding.measures.is_absolute else "max_kl"
    dump = Path(reheaded.name).stem
    raise ConfigError(
        f"{name}: the features of dump {dump!r} are too coarse for this head: "
        f"{context.task.describe(finding.fidelity)}, estimated on {finding.rows:,} rows; expected at most "
        f"{budget:g} on average; raise {key}, or dump again under a new name with a smaller budget"
    )


def require_classes(name: str, reheaded: Reheaded, data: PreparedData) -> None:
    """Refuse a head whose classes are not the data's, in their order.

    Raises:
        MismatchError: names both.
    """
    theirs, ours = reheaded.head.classes, data.classes
    if theirs == ours:
        return
    if sorted(theirs) == sorted(ours):
        place = next(place for place, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1)
        raise MismatchError(
            f"{name}: the head has the data's classes in another order: class {place} is "
            f"{theirs[place]!r}, and {ours[place]!r} in the data; reorder the head"
        )
    raise MismatchError(
        f"{name}: the head has {len(theirs)} classes ({first_of(theirs)}), and the data has {len(ours)} "
        f"({first_of(ours)}); expected the same, since labels train and judge students; use a head of "
        "these classes, or prepare data of those"
    )


def _quality(reheaded: Reheaded, context: RunContext) -> float | None:
    """Return the quality of the outputs on the test samples, if the classes are the data's."""
    if context.task.names_outputs and reheaded.head.classes != context.data.classes:
        return None
    outputs, labels = reheaded.held_out("test", context.data.test), context.data.test.labels
    return None if outputs is None else context.task.quality(outputs, labels)
