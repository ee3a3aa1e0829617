"""What the report shows of images: some as a teacher saw them, and those whose labels it contradicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.progress import note
from pipeline.evaluation.label_errors import LabelError, LabelErrors, find_label_errors
from pipeline.loading.feed import Feed
from pipeline.report.figures import Example, Mixed, make_examples, png_uri, spread_rows
from pipeline.samples.dataset import PreparedData
from pipeline.samples.packed import Images
from pipeline.store.ensemble import Ensemble
from pipeline.store.reader import LogitStore

EXAMPLES = 6
EXAMPLE_VIEWS = 3
SUSPECTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A sample whose label its teacher contradicts.

    Args:
        found: what is known of it.
        picture: un-augmented, as a data URI.
        side: of the picture in pixels.
    """

    found: LabelError
    picture: str
    side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """What is shown of a dump.

    Args:
        examples: training samples as the teacher saw them.
        label_errors: what it says of the labels; None where the store's logits are not at hand.
        suspects: the worst of them.
    """

    examples: tuple[Example, ...] = ()
    label_errors: LabelErrors | None = None
    suspects: tuple[Suspect, ...] = ()


def make_exhibit(name: str, store: LogitStore | Ensemble, data: PreparedData) -> Exhibit:
    """Look at a dump's images and logits, a view of logits in memory at a time.

    Args:
        name: of the dump.
        store: it, or an ensemble; manifests may have come without their shards.
        data: the samples.
    """
    if not all(m.location.exists(file) for m in store.members for file in m.manifest.shard_files()):
        note(
            f"{name}: no examples and no label errors, since its logits are not here; dvc pull brings them"
        )
        return Exhibit()
    note(f"looking at examples and labels of {name}")
    errors = find_label_errors(store, data, SUSPECTS)
    return Exhibit(
        examples=_examples(name, store, data),
        label_errors=errors,
        suspects=tuple(_suspect(error, store, data) for error in errors.worst),
    )


def _suspect(error: LabelError, store: LogitStore | Ensemble, data: PreparedData) -> Suspect:
    images: Images = getattr(data, error.split)
    feed = Feed(images, None, store.preprocessing, device=torch.device("cpu"))
    (pixels,) = feed.pixels(0, np.array([error.row])).numpy()
    return Suspect(found=error, picture=png_uri(pixels), side=len(pixels))


def _examples(name: str, store: LogitStore | Ensemble, data: PreparedData) -> tuple[Example, ...]:
    if store.view_spec.mixes and len(data.train) < store.n_samples:
        note(f"{name}: no examples, since images that others are mixed with have left the data")
        return ()
    rows = spread_rows(data.train.labels, EXAMPLES)
    blocks, device = store.blocks_of(data.train), torch.device("cpu")
    feed = Feed(data.train, store.view_spec, store.preprocessing, device=device, blocks=blocks)
    places = torch.from_numpy(store.rows_of(data.train)[rows])
    views = range(min(EXAMPLE_VIEWS, store.n_views))
    examples = make_examples(
        data.train.labels[rows],
        classes=data.classes,
        pixels=[feed.pixels(view, rows).numpy() for view in views],
        logits=[store.view(view)[places].numpy() for view in views],
        mixtures=[_mixture(feed, view, rows) for view in views],
    )
    return tuple(examples)


def _mixture(feed: Feed, view: int, rows: NDArray[np.int64]) -> Mixed | None:
    """Return the labels of the images that are mixed into some, and the share of each that is its own."""
    shares = feed.shares(view, rows)
    return None if shares is None else (feed.images.labels[shares[0]], shares[1])
