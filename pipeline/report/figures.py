"""Draw the report's figures: training curves as SVG, views as PNG, soft labels as lengths of bars.

Curves are drawn by matplotlib without its global state. It writes placeholder colours, which become CSS
variables here, so that one drawing fits a light and a dark page. The same input gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.codecs.rule import Link
from pipeline.modalities.picture import Picture
from pipeline.report.results import Curve
from pipeline.samples.label_forms import is_known, label_word
from pipeline.samples.samples import UNLABELLED

SOFT_TEMPERATURE = 4.0
TOP_LABELS = 3

_COLOURS = 8
_DASHES = ("", "5 2", "1.5 1.5")
_INK = "#00fe00"
_SERIES = "#00ff{:02x}"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "ytick.major.size": 0,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
}

_FOR_A_PAGE = (
    (r"<style.*?</style>", ""),  # it would style the whole page
    (r'<g id="[^"]*"', "<g"),  # unused, and equal in all drawings
    (r"font-family: [^;]*;", ""),  # use the page's font instead
    (r"xlink:href", "href"),
    (_INK, "currentColor"),
    (r"#00ff0(\d)", r"var(--series-\1)"),
)


Mixed = tuple[NDArray[Any], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Series:
    """Line style of the n-th recipe on the page: eight colours, then the same colours dashed."""

    index: int

    @property
    def colour(self) -> str:
        """A CSS variable of the page's style sheet."""
        return f"var(--series-{self.index % _COLOURS})"

    @property
    def dash(self) -> str:
        """An SVG dash pattern; empty for a solid line."""
        return _DASHES[self.index // _COLOURS % len(_DASHES)]


def curves_svg(curves: Sequence[tuple[Series, Curve]], *, label: str, scale: float = 1.0) -> str:
    """Draw means over seeds against the epoch, with a band of one standard error.

    Args:
        curves: one per line; empty curves are skipped.
        label: alternative text of the drawing, unique on the page.
        scale: factor on the values, e.g. 100 for per cent.

    Returns:
        An SVG element whose font and colours follow the page.
    """
    # The label is the salt of identifiers, which must differ between drawings on one page.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": label}]):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for series, curve in curves:
            if curve:
                _draw(axes, series, curve, scale)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), label)


def _draw(axes: Axes, series: Series, curve: Curve, scale: float) -> None:
    colour = _SERIES.format(series.index % _COLOURS)
    epochs = [epoch for epoch, _ in curve]
    means = np.array([estimate.mean for _, estimate in curve]) * scale
    errors = np.array([estimate.error or 0 for _, estimate in curve]) * scale
    dashes = [float(length) for length in series.dash.split()]
    style = (0, tuple(dashes)) if dashes else "-"
    axes.plot(epochs, means, color=colour, linewidth=1.5, linestyle=style)
    # Mark the last point: a run of one epoch has no line to draw.
    axes.plot(epochs[-1:], means[-1:], color=colour, marker="o", markersize=3.2)
    if errors.any():
        axes.fill_between(epochs, means - errors, means + errors, color=colour, alpha=0.16, linewidth=0)


def _inline(svg: str, label: str) -> str:
    """Convert a stand-alone SVG file to an element of a page with several."""
    view_box = re.search(r'viewBox="[^"]+"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern, replacement in _FOR_A_PAGE:
        body = re.sub(pattern, replacement, body)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box[0] if view_box else ""}>{body}'


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabel:
    """The teacher's probability of one class in one view.

    Args:
        name: the class.
        share: its probability at temperature 1.
        softened: its probability at `SOFT_TEMPERATURE`.
        correct: whether it is the sample's label.
    """

    name: str
    share: float
    softened: float
    correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One view of an example: its picture and the teacher's top classes.

    `mixed` has the classes of a mixed picture and the share of each.
    """

    picture: Picture
    labels: tuple[SoftLabel, ...]
    mixed: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A sample as the teacher saw it; `label` is None for an unlabelled one."""

    label: str | None
    views: tuple[ExampleView, ...]


def make_examples(
    labels_M: NDArray[Any],
    *,
    classes: Sequence[str],
    pictures: Sequence[Sequence[Picture]],
    logits: Sequence[NDArray[np.float32]],
    mixtures: Sequence[Mixed | None],
    link: Link = "softmax",
) -> list[Example]:
    """Prepare M samples for the page, each in several views.

    Args:
        labels_M: (M, ...) of any kind of labels.
        classes: names of classes, tags or numbers.
        pictures: per view, M pictures as rendered for the teacher.
        logits: per view (M, C), the teacher's outputs from the store.
        mixtures: per view, the partners' labels (M, ...) and the samples' own shares (M,); None for unmixed
            views.
        link: of the outputs; those of an identity are not shown.
    """
    return [
        Example(
            label=_named(label, classes),
            views=tuple(
                ExampleView(
                    picture=seen[place],
                    labels=_soft_labels(said[place], classes, _shown(label, mixture, place), link),
                    mixed=_described(label, mixture, place, classes),
                )
                for seen, said, mixture in zip(pictures, logits, mixtures, strict=True)
            ),
        )
        for place, label in enumerate(labels_M)
    ]


def _named(label: Any, classes: Sequence[str]) -> str | None:
    """Return a label in words; None for an unlabelled sample."""
    if label_word(label) == UNLABELLED:
        return None
    if np.ndim(label) == 0:
        return str(classes[int(label)])
    if label.dtype.kind == "f":
        return ", ".join(f"{name} {value:g}" for name, value in zip(classes, label.tolist(), strict=True))
    return ", ".join(classes[place] for place in np.flatnonzero(label == 1).tolist()) or "no tag"


def _shown(label: Any, mixture: Mixed | None, place: int) -> dict[int, float]:
    """Return the classes, or tags, in a picture, with the share of each."""
    other, share = (label, 1.0) if mixture is None else (mixture[0][place], float(mixture[1][place]))
    shown: dict[int, float] = {}
    for one, part in ((label, share), (other, 1 - share)):
        for name in [int(one)] if np.ndim(one) == 0 else np.flatnonzero(one == 1).tolist():
            if part:
                shown[name] = shown.get(name, 0.0) + part
    return shown


def _described(label: Any, mixture: Mixed | None, place: int, classes: Sequence[str]) -> str | None:
    """Return the shares of a mixed picture's classes in words; None if it shows one, or has no classes."""
    if np.ndim(label):
        return None
    shown = _shown(label, mixture, place)
    names = {c: "unlabelled" if c == UNLABELLED else classes[c] for c in shown}
    parts = [f"{100 * share:.0f} % {names[c]}" for c, share in shown.items()]
    return ", ".join(parts) if len(parts) > 1 else None


def _soft_labels(
    logits_C: NDArray[np.float32], classes: Sequence[str], shown: Mapping[int, float], link: Link
) -> tuple[SoftLabel, ...]:
    if link == "identity":
        return ()
    probabilities = _softmax if link == "softmax" else _sigmoid
    share, softened = probabilities(logits_C, 1.0), probabilities(logits_C, SOFT_TEMPERATURE)
    return tuple(
        SoftLabel(name=classes[c], share=float(share[c]), softened=float(softened[c]), correct=c in shown)
        for c in np.argsort(-share, kind="stable")[:TOP_LABELS].tolist()
    )


def spread_rows(labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Choose rows of as many classes as fit, spread over the classes, earliest rows first.

    Args:
        labels: (N,), -1 for unlabelled; of tags and numbers, labelled rows are spread evenly.
        count: rows to choose, at least 1; fewer are returned if N is smaller.
    """
    known = is_known(labels)
    rows = np.flatnonzero(known) if known.any() else np.arange(len(labels))
    if labels.ndim > 1:
        return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    classes = np.unique(labels[rows])
    places = np.linspace(0, len(classes) - 1, min(count, len(classes)))
    chosen = classes[places.round().astype(np.int64)]
    each = math.ceil(count / max(1, len(chosen)))
    found = [rows[labels[rows] == c][:each] for c in chosen]
    # The first row of each class precedes all second ones, so that cutting to `count` drops no class.
    ranked = sorted((rank, int(row)) for of_class in found for rank, row in enumerate(of_class))
    return np.sort(np.array([row for _, row in ranked[:count]], np.int64))


def _sigmoid(logits_C: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    # tanh does not overflow: sigmoid(z) = (1 + tanh(z / 2)) / 2.
    shares: NDArray[np.float64] = (1 + np.tanh(logits_C.astype(np.float64) / temperature / 2)) / 2
    return shares


def _softmax(logits_C: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    scaled = logits_C.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares
