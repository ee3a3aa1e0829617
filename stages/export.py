"""`pipeline export`: write a checkpoint as one file that runs without this project."""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np
import torch

from pipeline.core.errors import ConfigError, DataError, counted, did_you_mean, first_of
from pipeline.core.files import write_bytes
from pipeline.core.trust import Trust
from pipeline.export.deployment import Deployment
from pipeline.export.formats import FORMATS, measure_parity
from pipeline.loading.feed import Feed
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import find_modality
from pipeline.models.checkpoint import ModelCard, load_checkpoint
from pipeline.samples.packed import Split
from pipeline.tasks.table import find_task
from stages import paths
from stages.failures import say
from stages.options import debuggable, trusts_code
from stages.ranks import require_alone
from stages.runtime import bound_threads


@click.command()
@click.argument("checkpoint")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="Output format: ONNX or torch.export.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Output file.")
@click.option(
    "--with-normalise",
    is_flag=True,
    help="Take uint8 pixels (B, S, S, channels) and normalise them inside the model.  [default: normalised "
    "images (B, channels, S, S) float32]",
)
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Compare outputs on the files of this folder.  [default: the test split of data/prepared]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Compare outputs on at most this many samples.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Largest accepted difference of a logit, as a share of the largest logit.",
)
@trusts_code
@debuggable
def command(
    checkpoint: str,
    form: str,
    out: Path,
    with_normalise: bool,
    folder: Path | None,
    samples: int,
    threshold: float,
    trust: Trust,
) -> None:
    """Export CHECKPOINT (NAME.pt with its card NAME.json) to one ONNX or torch.export file.

    The name of a run, e.g. main-small-kd-0 or teacher-large, stands for its checkpoint below models/.
    The batch size is dynamic. Preprocessing and classes are included as JSON: in ONNX's metadata, or as
    extra files of the archive. The file is written only if it gives the network's logits on real samples.
    Code named by the card runs only with --trust-code.
    """
    require_alone()
    bound_threads()
    found = _find(checkpoint)
    _require_other_file(out, found)
    network, card = load_checkpoint(found, trust=trust)
    preprocessing = card.preprocessing
    images = _samples(folder, card, samples)
    deployment = Deployment(network=network, card=card, normalises=with_normalise).fitted()
    content = FORMATS[form].encode(deployment)
    feed = Feed(images, None, preprocessing, device=torch.device("cpu"))
    parity = measure_parity(deployment, FORMATS[form].load(content), feed, find_task(card.task))
    parity.require(threshold)
    write_bytes(out, content)
    for suffix, attached in preprocessing.attachments().items():
        write_bytes(out.with_suffix(f".{suffix}"), attached)
    written = f"{form} of {card.architecture.name}, {counted(len(card.classes), 'output')}"
    say(f"{out}: {len(content):,} bytes, {written}")
    click.echo(f"{parity}")


def _find(given: str) -> Path:
    """Return the file of a checkpoint, or that of a run of this name.

    Raises:
        ConfigError: no run has this name.
    """
    if re.fullmatch(r"[\w-]+", given) is None or Path(given).exists():
        return Path(given)
    students, teachers = (sorted(folder.glob("*.pt")) for folder in (paths.STUDENTS, paths.TEACHERS))
    runs = {file.stem: file for file in students} | {
        paths.teacher_run(file.stem): file for file in teachers
    }
    if given not in runs:
        known = first_of([name for name in runs if not name.endswith(".last")]) or "a trained run"
        raise ConfigError(
            f"no run {given!r} in models/; expected the file of a checkpoint, or one of {known}"
            f"{did_you_mean(given, runs)}"
        )
    return runs[given]


def _require_other_file(out: Path, checkpoint: Path) -> None:
    """Refuse to overwrite the exported checkpoint or its card."""
    if out.resolve() in (checkpoint.resolve(), checkpoint.with_suffix(".json").resolve()):
        raise ConfigError(f"--out {out} is the checkpoint itself or its card; choose a different file")


def _samples(folder: Path | None, card: ModelCard, count: int) -> Split:
    if folder is not None:
        return find_modality(card.modality).open_files(folder, card.preprocessing, count)
    try:
        held_out = PreparedData.open(paths.PREPARED).test
    except DataError as error:
        raise DataError(f"{error}; or compare on a folder of files: --images FOLDER") from None
    if not len(held_out):
        raise DataError(f"{paths.PREPARED}: has no test samples to compare on; use --images FOLDER")
    chosen = held_out.spread(count)
    chosen.require_unchanged(np.arange(len(chosen)))
    return chosen
