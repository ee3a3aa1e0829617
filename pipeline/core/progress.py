"""How far a long step is: a bar on a terminal, a plain line now and then in a log. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pipeline.core.errors import printable

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 20.0


def track(items: Iterable[T], description: str, *, total: int, unit: str, per_item: int = 1) -> Iterator[T]:
    """Yield the items and show how many are done, how fast, and how long it will take.

    Args:
        items: what to go through.
        description: names the step.
        total: number of units in all.
        unit: what is counted, in the singular.
        per_item: units an item; the last item may hold fewer.

    """
    if sys.stderr.isatty():
        return _bar(items, description, total, unit, per_item)
    return _lines(items, description, total, unit, per_item)


def note(text: str) -> None:
    """Print one line of progress to stderr, above a bar if there is one."""
    tqdm.write(printable(text), file=sys.stderr)


def _bar(items: Iterable[T], description: str, total: int, unit: str, per_item: int) -> Iterator[T]:
    with tqdm(total=total, desc=description, unit=unit, unit_scale=True, leave=False) as bar:
        for item in items:
            yield item
            bar.update(min(per_item, total - bar.n))


def _lines(items: Iterable[T], description: str, total: int, unit: str, per_item: int) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + per_item, total)
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            rate = done / (now - start)
            left = (total - done) / rate
            note(f"{description}: {done:,} of {total:,} {unit}s, {rate:,.0f}/s, {left:,.0f} s left")
            last = now
