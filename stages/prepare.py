"""`pipeline prepare`: import the dataset, pack or scan it, fix the splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.core.errors import ConfigError, counted, plural
from pipeline.core.progress import note, track
from pipeline.core.team import Elsewhere
from pipeline.samples.description import SPLITS
from pipeline.samples.elsewhere import Reopened
from pipeline.samples.prepare import divide, prepare
from pipeline.samples.samples import Sample
from pipeline.tasks.table import find_task
from stages import paths
from stages.data_params import DataParams
from stages.engine import Engine
from stages.failures import say
from stages.options import reads_params, shares_reading
from stages.params import Params
from stages.ranks import require_alone
from stages.runtime import bound_threads, default_workers
from stages.team import team_of
from stages.watch import is_kept, keep, look

# Words for the values of a sample's label.
_NAMED = {"index": "class", "tags": "tag", "numbers": "number"}


@click.command()
@shares_reading(
    "Reading threads, or processes for large datasets; with --on the number of worker processes.  "
    "[default: one per available CPU]"
)
@click.option(
    "--look",
    "only_look",
    is_flag=True,
    help="Only compare the source with the digest file of `data.watch`, and rewrite it if they differ.",
)
@reads_params
def command(params: Params, workers: int | None, engine: Engine | None, only_look: bool) -> None:
    """Import and prepare the dataset of `data.source`, and fix its splits.

    Reads every sample once into data/prepared: packed arrays (for images uint8 pixels), labels, stable
    sample keys and content digests of the training, validation and test splits. With `data.keep: encoded`
    image files stay in place and are only scanned. An interrupted preparation resumes. With --on, workers
    of Ray read the samples; each of them finds the source at the same path.
    """
    require_alone()
    bound_threads()
    params.require_models()
    data = params.data
    # Before the files are read: a change in between is noticed by the next look.
    seen = look(data) if is_kept(data) else None
    if only_look:
        _tell_look(data, seen)
        return
    _, _, path = data.source.partition(":")
    watched = data.watch and Path(path).absolute().is_relative_to(Path(data.watch).absolute())
    if path and Path(path).exists() and seen is None and not watched:
        note(
            f"data.watch is {data.watch!r}, so DVC will not notice changes in {path}; set data.watch to "
            "that path"
        )
    source = data.kind.open_source(data.source, data.options)
    intake = data.kind.intake(source, paths.PREPARED, data.options)
    with team_of(engine, params) as team:
        description = prepare(
            source,
            paths.PREPARED,
            data.preparation(),
            intake,
            state=paths.STATE / "prepare",
            workers=default_workers() if workers is None or engine is not None else workers,
            progress=partial(_progress, intake.form.noun),
            elsewhere=None if engine is None else Elsewhere(team=team, reopen=partial(_reopen, data)),
        )
    if seen is not None:
        keep(data, seen)
    counts = ", ".join(_count(description, name) for name in SPLITS)
    named = counted(len(description["classes"]), _NAMED[find_task(data.task).labels[0]])
    say(f"{data.source}: {named}, {counts} {plural(intake.form.noun)}")


def _reopen(data: DataParams) -> Reopened:
    """Open the splits of the source, and their intake, in a worker, which ends with its last part."""
    source = data.kind.open_source(data.source, data.options)
    intake = data.kind.intake(source, paths.PREPARED, data.options).__enter__()
    return divide(source, data.preparation(), intake.form.noun), intake


def _tell_look(data: DataParams, seen: dict[str, Any] | None) -> None:
    """Write the digest file of the source, and print whether it changed.

    Raises:
        ConfigError: `data.watch` is no digest file.
    """
    if seen is None:
        raise ConfigError(
            f"data.watch is {data.watch!r}; --look expects the name of a digest file, e.g. photos.watch; "
            "set data.watch to it"
        )
    changed = keep(data, seen)
    told = "have changed; next: dvc repro, or pipeline prepare" if changed else "are unchanged"
    say(f"{data.watch}: {counted(seen['files'], 'file')} of {data.source} {told}")


def _count(description: Mapping[str, Any], split: str) -> str:
    samples, labelled = description["samples"][split], description["labelled"][split]
    return f"{split} {samples:,}" + (f" ({samples - labelled:,} unlabelled)" if labelled < samples else "")


def _progress(noun: str, samples: Sequence[Sample], step: str) -> Iterator[Sample]:
    return track(samples, step, total=len(samples), unit=noun)
