"""`pipeline init`: set up a project in the working folder for photographs, texts, sounds or a log of items.

Owns the checks and the written files; `survey.py` looks at the data and writes `params.yaml` for it.
Nothing is overwritten, and nothing is written before all checks have passed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import click

from pipeline.core.errors import ConfigError, brief, printable, quoted
from pipeline.core.files import write_bytes
from pipeline.places.addresses import is_address
from stages import paths
from stages.failures import say
from stages.options import debuggable
from stages.render import quoted_yaml, render, stages_of
from stages.survey import begin, require_folder

_PARAMS, _STAGES, _GITIGNORE = "params.yaml", "dvc.yaml", ".gitignore"
_DVC, _DVCIGNORE = ".dvc", ".dvcignore"
_WRITTEN = (_PARAMS, _STAGES, _GITIGNORE, _DVC, _DVCIGNORE)
_OUTPUTS = (paths.PREPARED, paths.LOGITS, paths.TEACHERS, paths.STUDENTS, paths.RUNS, paths.REPORTS)
_WAIT_SECONDS = 120.0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--logits",
    "place",
    type=click.Path(file_okay=False),
    default=None,
    metavar="PLACE",
    help="Keep stores in this folder, e.g. on a large disk, or at this address, e.g. s3://bucket/logits. "
    "DVC then tracks one pointer file per dump instead of its 100,000 files.  [default: data/logits]",
)
@debuggable
def command(folder: Path, place: str | None) -> None:
    """Start a project in the working folder from the data in FOLDER, which is only read.

    FOLDER contains train/CLASS/* and test/CLASS/* (or val/CLASS/*), or only CLASS/*: then each file has a
    chance of 20 %, by the hash of its name, to be a test file. Files are photographs, sounds, or texts
    (.txt). FOLDER may also be a table of texts, a CSV, TSV, JSON lines or Parquet file, or a folder with
    train and test files of these; or images in WebDataset tars, in Parquet files, in a folder saved by
    Hugging Face's datasets, or named by a CSV file; or a log of users, items and times, a CSV or .inter
    file. Writes params.yaml, fitted to the data, dvc.yaml, .dvc, .dvcignore and .gitignore, and overwrites
    nothing. Next step: dvc repro.
    """
    root = Path.cwd()
    _require_new(root)
    _require_apart(root, folder)
    named = _as_named(folder)
    begun = begin(folder, named)
    hidden = None if place is None or is_address(place) else _ignored(root, Path(place))
    texts = {
        _PARAMS: begun.params + ("" if place is None else _places(place)),
        _STAGES: stages_of(begun.modality, begun.options, pointer=place is not None),
        _GITIGNORE: render("gitignore.j2", data=_ignored(root, folder)) + (f"{hidden}\n" if hidden else ""),
    }
    _init_dvc(root, hidden)
    for name, text in texts.items():
        write_bytes(root / name, text.encode())
    for line in begun.told:
        say(f"{folder}: {line}")
    say(f"wrote {', '.join(_WRITTEN)}; next: dvc repro")


def _require_new(root: Path) -> None:
    """Refuse a working folder that has one of the files already, or is inside another DVC project.

    Raises:
        ConfigError: naming all existing files, or the other project.
    """
    there = [name for name in _WRITTEN if os.path.lexists(root / name)]
    if there:
        raise ConfigError(
            f"{', '.join(there)}: already in the working folder {root}; nothing is overwritten; move them "
            "away, or run the command in a new folder"
        )
    around = next((folder for folder in root.parents if (folder / _DVC).is_dir()), None)
    if around is not None:
        raise ConfigError(
            f"{root}: is inside {around}, which is another DVC project; run the command outside of it"
        )


def _require_apart(root: Path, folder: Path) -> None:
    """Refuse a missing folder of photographs, or one that overlaps with the outputs.

    Raises:
        DataError: not a folder.
        ConfigError: an output is inside the folder, or the folder inside an output.
    """
    if not folder.exists():
        require_folder(folder)
    photographs = folder.resolve()
    for output in (root / name for name in (*_WRITTEN, *_OUTPUTS)):
        place = output.resolve()
        if place.is_relative_to(photographs):
            raise ConfigError(
                f"{folder}: {output.relative_to(root)} would be written inside the photographs' folder; "
                "run the command in a new folder outside of it"
            )
        if photographs.is_relative_to(place):
            raise ConfigError(
                f"{folder}: is inside {output.relative_to(root)}, which the stages overwrite; move the "
                "photographs, or run the command in a new folder"
            )


def _as_named(folder: Path) -> str:
    """Return a folder's name for params.yaml: as given, or absolute if DVC would misread it."""
    # DVC reads text before a colon as a URL scheme.
    name = str(folder.absolute() if ":" in str(folder) else folder)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{quoted(name)}: the name is not valid UTF-8, so params.yaml cannot hold it; rename the folder"
        ) from None
    return name


def _places(place: str) -> str:
    """Return the end of params.yaml that puts stores elsewhere."""
    return (
        "\n# Place of the stores; data/logits holds a pointer to each.\n"
        f"places:\n  logits: {quoted_yaml(place)}\n"
    )


def _init_dvc(root: Path, hidden: str | None) -> None:
    """Create .dvc and .dvcignore; with Git if the working folder is in a Git repository.

    Args:
        root: the working folder.
        hidden: pattern of a folder that DVC does not look into.

    Raises:
        ConfigError: DVC refuses; its files are removed.
    """
    inside = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    how = [] if inside == root else ["--no-scm"] if inside is None else ["--subdir"]
    asked = [sys.executable, "-m", "dvc", "init", "--quiet", *how]
    try:
        done = subprocess.run(asked, cwd=root, capture_output=True, text=True, timeout=_WAIT_SECONDS)  # noqa: S603
        reason = brief(done.stderr.removeprefix("ERROR: ")) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = brief(error)
    if reason:
        shutil.rmtree(root / _DVC, ignore_errors=True)
        (root / _DVCIGNORE).unlink(missing_ok=True)
        raise ConfigError(
            f"{root}: `dvc init` failed here ({printable(reason)}); fix the cause, and run the command "
            "again"
        )
    made, ours = (root / _DVC / "config").read_text(), _packaged("config")
    without_git = "    no_scm = True\n" if "no_scm" in made else ""
    write_bytes(root / _DVC / "config", ours.replace("[core]\n", f"[core]\n{without_git}", 1).encode())
    ignored = _packaged("dvcignore") + (f"{hidden}\n" if hidden else "")
    write_bytes(root / _DVCIGNORE, ignored.encode())


def _packaged(name: str) -> str:
    return (files("stages") / "templates" / name).read_text()


def _ignored(root: Path, folder: Path) -> str | None:
    """Return the .gitignore line for photographs inside the working folder; None if outside."""
    photographs = folder.resolve()
    if not photographs.is_relative_to(root.resolve()):
        return None
    # Escape all characters that Git's patterns interpret, including a trailing space.
    escaped = re.sub(r"([\\*?\[\]!# ])", r"\\\1", photographs.relative_to(root.resolve()).as_posix())
    return f"/{escaped}/" if folder.is_dir() else f"/{escaped}"
