"""`pipeline preset`: print or write a ready-made parameter file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

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
@debuggable
def command(name: str | None, out: Path | None) -> None:
    """Print the parameter file NAME or write it; without NAME, list all presets.

    Comments in the file give the source of each choice. Save it as params.yaml to run it with DVC.
    """
    if name is not None:
        _give(name, out)
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


def _give(name: str, out: Path | None) -> None:
    known = presets()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"no preset {name!r}; expected one of {', '.join(known)}{hint}")
    if out is None:
        click.echo(known[name], nl=False)
        return
    if out.exists():
        raise ConfigError(f"{out}: already exists; choose a different name, or remove it first")
    write_bytes(out, known[name].encode())
    click.echo(f"{out}: wrote preset {name}; next: pipeline prepare --params {out}")
