"""`pipeline verify`: check every byte of a store, and replay its teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import torch

from pipeline.audit import Audit, replay, verify
from pipeline.bench import Bench
from pipeline.data.packed import PreparedData
from pipeline.errors import StoreError
from pipeline.store.manifest import Manifest
from stages import layout
from stages.options import debuggable, runs_on_device
from stages.teachers import load_teacher


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--replay",
    "pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Run the teacher again on this many random (view, sample) pairs.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@runs_on_device
@debuggable
def command(store: Path, pairs: int, as_json: bool, device: torch.device, workers: int) -> None:
    """Check every byte of STORE against its manifest; exit 1 when something is wrong.

    With --replay, the teacher of models/teachers looks again at images of data/prepared.
    """
    try:
        audit = verify(store)
    except StoreError as error:
        if not as_json:
            raise
        audit = Audit(ok=False, checked=0, bad=[str(error)])
    if audit.ok and pairs:
        teacher = Manifest.read(store).teacher
        replayed = replay(
            store,
            Bench(data=PreparedData.open(layout.PREPARED), device=device, workers=workers),
            load_teacher(teacher["name"], teacher["precision"], device),
            pairs,
        )
        audit = replace(replayed, checked=audit.checked)
    if as_json:
        click.echo(json.dumps(audit.to_dict(), indent=1))
    else:
        for problem in audit.bad:
            click.echo(problem)
        click.echo(f"{store}: {audit.checked} files checked, {len(audit.bad)} bad")
        if audit.replayed:
            click.echo(
                f"{audit.replayed} pairs replayed: largest difference {audit.replay_max_abs_diff:.3g}, "
                f"mean KL {audit.replay_kl_mean:.2e}"
            )
    if not audit.ok:
        raise click.exceptions.Exit(1)
