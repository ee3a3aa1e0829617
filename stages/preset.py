"""`pipeline preset`: print or write a ready-made parameter file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click
import yaml

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.files import write_bytes
from stages.options import debuggable


@click.command()
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write to this new file.  [default: print to stdout]",
)
@click.option("--dvc", is_flag=True, help="Write dvc.yaml for these parameters beside --out, too.")
@debuggable
def command(name: str | None, out: Path | None, dvc: bool) -> None:
    """Print the parameter file NAME or write it; without NAME, list all presets.

    Comments in the file give the source of each choice. Save it as params.yaml to run it with DVC, with the
    stages that --dvc writes, after `dvc init`.
    """
    if dvc and out is None:
        raise click.UsageError("--dvc without --out; expected a file for the parameters; add it")
    if name is not None:
        _give(name, out, dvc=dvc)
        return
    if out is not None:
        raise click.UsageError("--out needs the NAME of a preset; add it")
    for known, text in presets().items():
        click.echo(f"{known:15} {text.splitlines()[0].removeprefix('# ')}")


def presets() -> dict[str, str]:
    """Return the text of every preset, by name; the first line of a text is its description."""
    found = sorted(
        (entry for entry in (files("stages") / "presets").iterdir() if entry.name.endswith(".yaml")),
        key=lambda entry: entry.name,
    )
    return {entry.name.removesuffix(".yaml"): entry.read_text() for entry in found}


def _give(name: str, out: Path | None, *, dvc: bool) -> None:
    known = presets()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"no preset {name!r}; expected one of {', '.join(known)}{hint}")
    if out is None:
        click.echo(known[name], nl=False)
        return
    stages = out.with_name("dvc.yaml")
    for path in (out, stages) if dvc else (out,):
        if path.exists():
            raise ConfigError(f"{path}: already exists; choose a different name, or remove it first")
    write_bytes(out, known[name].encode())
    if not dvc:
        click.echo(f"{out}: wrote preset {name}; next: pipeline prepare --params {out}")
        return
    write_bytes(stages, _stages(known[name]).encode())
    click.echo(f"{out}, {stages}: wrote preset {name}; next: dvc init --no-scm && dvc repro")


def _stages(preset: str) -> str:
    """Return dvc.yaml for the modality of a preset."""
    from pipeline.modalities.table import DEFAULT, find_modality
    from stages.render import stages_of

    return stages_of(find_modality(yaml.safe_load(preset)["data"].get("modality", DEFAULT)))
