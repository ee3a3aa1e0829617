"""Fit the codebooks of `pq-M` and `rvq-M` to a teacher's outputs: k-means, from seeded first codewords.

k-means is written here, not taken from a library: it runs on the device of the outputs, and a dump needs
no further package.

Outputs are dealt to the M parts of `pq-M` by their spread, so that each part has a like share of it. A
codebook has 256 codewords, or fewer for a small pilot: one for every eight rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.codecs.base import Codec, TeacherOutput
from pipeline.codecs.rule import Rule
from pipeline.codecs.vectors import CODEWORDS, PRODUCT, nearest, require_bytes, vectors

_ITERATIONS = 15
_ROWS_PER_CODEWORD = 8
_SEED = 0


def fit_vectors(pilot: TeacherOutput, stem: str, number: int, rule: Rule) -> Codec:
    """Return the codec with codebooks of a pilot's outputs.

    Args:
        pilot: outputs (n, D) of some samples, finite.
        stem: pq or rvq.
        number: M, bytes per vector.
        rule: of the task.

    Raises:
        ConfigError: M is out of range.
    """
    outputs_ND = pilot.logits.float()
    require_bytes(stem, number, outputs_ND.shape[1])
    metric_D = _metric(rule, outputs_ND)
    length = max(1, min(CODEWORDS, len(outputs_ND) // _ROWS_PER_CODEWORD))
    state = {"metric": metric_D, **_books(stem, number, outputs_ND * metric_D, length)}
    # Codewords were found in units of the metric.
    state["table"] = state["table"] / (metric_D[:, None] if stem == PRODUCT else metric_D)
    return vectors(stem, number, {name: values.cpu() for name, values in state.items()})


def _books(stem: str, number: int, weighted_ND: Tensor, length: int) -> dict[str, Tensor]:
    """Return the table, and of pq the part of each output, in units of the metric."""
    generator = torch.Generator().manual_seed(_SEED)
    if stem == PRODUCT:
        part = deal(weighted_ND.var(0, correction=0), number)
        table = weighted_ND.new_zeros(weighted_ND.shape[1], length)
        for m in range(number):
            table[part == m] = kmeans(weighted_ND[:, part == m], length, generator).T
        return {"table": table, "part": part.int()}
    left, books = weighted_ND, []
    ones = torch.ones_like(weighted_ND[0])
    for _ in range(number):
        book = kmeans(left, length, generator)
        left = left - book[nearest(book, left, ones)]
        books.append(book)
    return {"table": torch.cat(books)}


def deal(spread_D: Tensor, parts: int) -> Tensor:
    """Return the part (D,) of each output: dealt to and fro by descending spread.

    >>> deal(torch.tensor([1.0, 9.0, 4.0, 2.0, 3.0]), 2).tolist()
    [0, 0, 1, 0, 1]
    """
    order = spread_D.argsort(descending=True, stable=True)
    place = torch.arange(len(spread_D), device=spread_D.device)
    # e.g. 3 parts: 0 1 2 2 1 0 0 1 2 …
    turn = place % (2 * parts)
    dealt = torch.where(turn < parts, turn, 2 * parts - 1 - turn)
    return torch.empty_like(order).scatter_(0, order, dealt)


def kmeans(rows_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` means (L, D) of rows, near a local minimum of the squared error.

    A mean without rows moves to the row that is worst served, so none is wasted.

    Args:
        rows_ND: at least `count` rows, float32.
        count: L.
        generator: on the CPU; draws the rows to begin with.
    """
    first = torch.randperm(len(rows_ND), generator=generator)[:count]
    means, ones = rows_ND[first.to(rows_ND.device)].clone(), torch.ones_like(rows_ND[0])
    for _ in range(_ITERATIONS):
        near = nearest(means, rows_ND, ones)
        sizes = torch.bincount(near, minlength=count)
        sums = torch.zeros_like(means).index_add_(0, near, rows_ND)
        means = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            error = (rows_ND - means[near]).square().sum(1)
            means[empty] = rows_ND[error.topk(len(empty)).indices]
    return means


def _metric(rule: Rule, outputs_ND: Tensor) -> Tensor:
    if not rule.measures.scales:
        return torch.ones_like(outputs_ND[0])
    scales = torch.tensor(rule.measures.scales, dtype=torch.float64, device=outputs_ND.device)
    return scales.rsqrt().float()
