"""Show the progress of a long step on stderr: a bar on a terminal, occasional lines in a log.

Owns the words for durations, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pipeline.core.errors import plural, printable

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 20.0


def track(
    items: Iterable[T], description: str, *, total: int, unit: str, per_item: int = 1, part: str = ""
) -> Iterator[T]:
    """Yield the items and show the number done, the rate and the remaining time.

    Args:
        items: to yield.
        description: name of the step.
        total: number of units.
        unit: a noun in the singular, e.g. "image".
        per_item: units per item; the last item may have fewer.
        part: the part of a longer job whose remaining time is shown, e.g. "epoch".

    """
    if sys.stderr.isatty():
        return _bar(items, description, total, unit, per_item)
    return _lines(items, description, total, unit, per_item, f" of this {part}" if part else "")


def note(text: str) -> None:
    """Print one line to stderr, above any progress bar."""
    tqdm.write(printable(text), file=sys.stderr)


def duration(seconds: float) -> str:
    """Format a duration in hours and minutes.

    >>> duration(12), duration(125), duration(3720)
    ('less than a minute', '2 min', '1 h 2 min')
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "less than a minute"


def _bar(items: Iterable[T], description: str, total: int, unit: str, per_item: int) -> Iterator[T]:
    with tqdm(total=total, desc=description, unit=unit, unit_scale=True, leave=False) as bar:
        for item in items:
            yield item
            bar.update(min(per_item, total - bar.n))


def _lines(
    items: Iterable[T], description: str, total: int, unit: str, per_item: int, part: str
) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + per_item, total)
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            rate = done / (now - start)
            left = (total - done) / rate
            pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            note(f"{description}: {done:,} of {total:,} {plural(unit)}, {pace}/s, {left:,.0f} s left{part}")
            last = now
