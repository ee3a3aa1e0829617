"""What a terminal is given: lines whose control characters are escaped, of bounded length.

Stores, cards and file names come from other people, and a terminal obeys what stands in them.
"""

from __future__ import annotations

import click

from pipeline.core.errors import printable, shortened

LONGEST_LINE = 2000


def one_line(text: str) -> str:
    """Return a text as one line for a terminal."""
    return shortened(printable(text.rstrip()), LONGEST_LINE)


def say(text: str) -> None:
    """Print one line of a command's results."""
    click.echo(printable(text))
