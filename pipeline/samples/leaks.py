"""Find leaks: equal samples in two splits, e.g. training and test, or with two labels.

Samples are equal if their values are equal, or their bytes for files that stay encoded. Candidates have the
same glance, a digest of a small part that the draft stores per sample. Full digests then decide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import counted, printable
from pipeline.core.files import read_json
from pipeline.samples.description import DESCRIPTION
from pipeline.samples.label_forms import label_word, label_words
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED

_EXAMPLES = 3
# Samples of the first split that are also in the second are counted.
_PAIRS = (("test", "train"), ("test", "validation"), ("validation", "train"))
_TWO_LABELS = "two_labels"
_SENTENCES = {
    "test_in_train": "{count:,} of {test:,} test samples are also in train",
    "test_in_validation": "{count:,} of {test:,} test samples are also in validation",
    "validation_in_train": "{count:,} of {validation:,} validation samples are also in train",
    _TWO_LABELS: "{labelled} two labels",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a split."""

    split: str
    row: int


class Leaks:
    """Counts and examples of equal samples, by kind: test_in_train and so on, and two_labels."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def add(self, kind: str, names: tuple[str, str]) -> None:
        """Count a sample, given its name and the name of an equal one."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(names)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and examples as plain values; empty without leaks."""
        return {
            kind: {"count": self.counts[kind], "examples": [list(names) for names in self.examples[kind]]}
            for kind in _SENTENCES
            if self.counts[kind]
        }


def find_leaks(splits: Mapping[str, Split], glances: Mapping[str, NDArray[np.uint64]]) -> Leaks:
    """Find equal samples of different splits or labels.

    Args:
        splits: of a prepared dataset.
        glances: split -> (N,) glance digests, which ignore the label.
    """
    leaks = Leaks()
    for alike in _alike(splits, glances):
        for equal in _equal(splits, alike):
            _count(leaks, splits, equal)
    return leaks


def describe_leaks(leaks: Mapping[str, Any], samples: Mapping[str, int]) -> str:
    """Summarise `Leaks.to_dict` in one line; empty without leaks.

    Args:
        leaks: of a dataset.
        samples: split -> number of images.
    """
    parts = []
    for kind, sentence in _SENTENCES.items():
        if kind in leaks:
            count, examples = leaks[kind]["count"], leaks[kind]["examples"]
            first, second = map(_end, examples[0])
            more = ", …" if count > 1 else ""
            labelled = f"{counted(count, 'sample')} {'has' if count == 1 else 'have'}"
            found = sentence.format(count=count, labelled=labelled, **samples)
            parts.append(f"{found} ({first} = {second}{more})")
    return ", ".join(parts)


def read_leaks(folder: Path) -> str:
    """Summarise the leaks in dataset.json in one line; empty for data of versions without this check."""
    description = read_json(folder / DESCRIPTION)
    return describe_leaks(description.get("leaks", {}), description["samples"])


def _alike(splits: Mapping[str, Split], glances: Mapping[str, NDArray[np.uint64]]) -> Iterator[list[Place]]:
    """Yield groups of samples with equal glance and different splits or labels."""
    names = list(splits)
    # All splits in one sequence: split number, row, label and glance of each sample, (N of all splits,).
    which = np.repeat(np.arange(len(names)), [len(splits[name]) for name in names])
    rows = np.concatenate([np.arange(len(splits[name])) for name in names])
    labels = np.concatenate([label_words(splits[name].labels) for name in names])
    glance = np.concatenate([glances[name] for name in names])
    _, group, sizes = np.unique(glance, return_inverse=True, return_counts=True)
    # Sorted by group, candidates with one glance are adjacent and are cut at each change of the group.
    # E.g. groups 4 7 4 9 7 (9 occurs once and is dropped): order 0 2 | 1 4.
    several = np.flatnonzero(sizes[group] > 1)
    order = several[np.argsort(group[several], kind="stable")]
    ends = np.flatnonzero(np.diff(group[order])) + 1
    for alike in np.split(order, ends) if len(order) else ():
        if np.ptp(which[alike]) or (labels[alike] != labels[alike[0]]).any():
            yield [Place(names[which[at]], int(rows[at])) for at in alike.tolist()]


def _equal(splits: Mapping[str, Split], alike: Sequence[Place]) -> Iterator[list[Place]]:
    """Divide a group of candidates by full content; yield the groups of equal images."""
    by_content: dict[int, list[Place]] = defaultdict(list)
    for place in alike:
        by_content[int(splits[place.split].content_digests[place.row])].append(place)
    yield from (places for places in by_content.values() if len(places) > 1)


def _count(leaks: Leaks, splits: Mapping[str, Split], equal: Sequence[Place]) -> None:
    """Count one group of equal images."""
    names = {place: splits[place.split].names[place.row] for place in equal}
    by_split: dict[str, list[str]] = defaultdict(list)
    by_label: dict[int, str] = {}
    for place in equal:
        by_split[place.split].append(names[place])
        label = label_word(splits[place.split].labels[place.row])
        if label != UNLABELLED:
            by_label.setdefault(label, names[place])
    for held, other in _PAIRS:
        if by_split[other]:
            for name in by_split[held]:
                leaks.add(f"{held}_in_{other}", (name, by_split[other][0]))
    if len(by_label) > 1:
        first, second, *_ = by_label.values()
        leaks.add(_TWO_LABELS, (first, second))


def _end(name: str) -> str:
    return printable(name if len(name) <= 120 else f"…{name[-119:]}")
