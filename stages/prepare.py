"""`pipeline prepare`: import and pack the dataset, fix the splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pipeline.data.packed import SPLITS
from pipeline.data.prepare import prepare
from pipeline.data.sample import Sample
from pipeline.data.sources import SourceOptions, open_source
from pipeline.progress import note, track
from stages import layout
from stages.options import reads_params
from stages.params import Params


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=None,
    help="Decoding threads.  [default: one a processor]",
)
@reads_params
def command(params: Params, workers: int | None) -> None:
    """Import and pack the dataset of `data.source`, fix the splits.

    Decodes every image once into data/prepared: packed uint8 pixels, labels, stable sample keys and
    content digests of the training, validation and test splits.
    """
    _, _, path = params.data.source.partition(":")
    if Path(path).exists() and path and Path(params.data.watch) != Path(path):
        note(
            f"data.watch is {params.data.watch!r}: DVC will not see changes in {path}; set data.watch to it"
        )
    options = SourceOptions(root=Path(params.data.root), channels=params.data.channels)
    description = prepare(
        open_source(params.data.source, options),
        layout.PREPARED,
        origin=params.data.source,
        validation=params.data.validation,
        seed=params.data.seed,
        workers=workers or os.cpu_count() or 1,
        progress=_progress,
    )
    counts = ", ".join(f"{name} {description['samples'][name]:,}" for name in SPLITS)
    click.echo(f"{params.data.source}: {len(description['classes'])} classes, {counts} images")


def _progress(samples: Sequence[Sample], name: str) -> Iterator[Sample]:
    return track(samples, f"decode {name}", total=len(samples), unit="image")
