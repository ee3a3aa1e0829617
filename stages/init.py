"""`pipeline init`: set up a project in the working folder for a folder of photographs.

Owns the checks and the written files; `fit.py` owns the parameters. Nothing is overwritten, and nothing is
written before all checks have passed.
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
import numpy as np
import torch

from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError, DataError, brief, first_of, printable, quoted
from pipeline.core.files import write_bytes
from pipeline.core.progress import note
from pipeline.modalities.table import families, find_modality
from pipeline.samples.samples import Sample
from stages import paths
from stages.failures import say
from stages.fit import Survey, find_teacher, fit, render
from stages.options import debuggable

_PARAMS, _STAGES, _GITIGNORE = "params.yaml", "dvc.yaml", ".gitignore"
_DVC, _DVCIGNORE = ".dvc", ".dvcignore"
_WRITTEN = (_PARAMS, _STAGES, _GITIGNORE, _DVC, _DVCIGNORE)
_OUTPUTS = (paths.PREPARED, paths.LOGITS, paths.TEACHERS, paths.STUDENTS, paths.RUNS, paths.REPORTS)
# Number of image headers to read; more sizes would not change a choice.
_MOST_HEADERS = 2_000
_WAIT_SECONDS = 120.0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@debuggable
def command(folder: Path) -> None:
    """Begin a project in the working folder with the photographs in FOLDER, which is only read.

    FOLDER holds train/CLASS/* and test/CLASS/* (or val/CLASS/*), or CLASS/* alone: then about 20 % of the
    files, each drawn by the hash of its name, are the test split. Writes params.yaml, fitted to the
    classes and sizes found, dvc.yaml, .dvc, .dvcignore and .gitignore, and overwrites nothing. After it:
    dvc repro.
    """
    root = Path.cwd()
    _require_new(root)
    _require_apart(root, folder)
    named = _as_named(folder)
    survey = _look(folder, named)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    installed = [one for family in families() for one in family.installed()]
    texts = {
        _PARAMS: render("params.yaml.j2", **fit(survey, installed, device)),
        _STAGES: _packaged("dvc.yaml.txt"),
        _GITIGNORE: render("gitignore.j2", photographs=_ignored(root, folder)),
    }
    _init_dvc(root)
    for name, text in texts.items():
        write_bytes(root / name, text.encode())
    say(f"{folder}: {survey}")
    if find_teacher(installed, device) is None:
        say("teacher: trained from scratch, as no pretrained weights are on this machine; see params.yaml")
    say(f"written: {', '.join(_WRITTEN)}; next: dvc repro")


def _require_new(root: Path) -> None:
    """Refuse a working folder that has one of the files already, or is inside another DVC project.

    Raises:
        ConfigError: naming all existing files, or the other project.
    """
    there = [name for name in _WRITTEN if os.path.lexists(root / name)]
    if there:
        raise ConfigError(
            f"{', '.join(there)}: already in the working folder {root}; expected none of them, as nothing "
            "is overwritten; move them away, or run the command in a new folder"
        )
    around = next((folder for folder in root.parents if (folder / _DVC).is_dir()), None)
    if around is not None:
        raise ConfigError(
            f"{root}: lies in {around}, which is another project of DVC; expected a folder in none; run "
            "the command elsewhere"
        )


def _require_apart(root: Path, folder: Path) -> None:
    """Refuse a missing folder of photographs, or one that overlaps with the outputs.

    Raises:
        DataError: not a folder.
        ConfigError: an output is inside the folder, or the folder inside an output.
    """
    if not folder.is_dir():
        found = "no folder" if os.path.lexists(folder) else "no such folder"
        raise DataError(
            f"{folder}: {found}; expected the one with the photographs in class folders; correct the path"
        )
    photographs = folder.resolve()
    for output in (root / name for name in (*_WRITTEN, *_OUTPUTS)):
        place = output.resolve()
        if place.is_relative_to(photographs):
            raise ConfigError(
                f"{folder}: {output.relative_to(root)} of the working folder would be written among the "
                "photographs; expected them apart; run the command in a new folder outside of them"
            )
        if photographs.is_relative_to(place):
            raise ConfigError(
                f"{folder}: lies in {output.relative_to(root)}, which is written by the stages; expected "
                "the photographs apart from outputs; move them, or run the command in a new folder"
            )


def _as_named(folder: Path) -> str:
    """Return a folder's name for params.yaml: as given, or absolute if DVC would misread it."""
    # DVC reads text before a colon as a URL scheme.
    name = str(folder.absolute() if ":" in str(folder) else folder)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{quoted(name)}: not a name in UTF-8; expected one that a file can hold; rename the folder"
        ) from None
    return name


def _look(folder: Path, named: str) -> Survey:
    """Count the photographs that `prepare` will find, and read up to `_MOST_HEADERS` headers."""
    modality = find_modality()
    source = modality.open_source(f"folder:{named}", modality.options_type())
    if np.ndim(source.train[0].label):
        raise ConfigError(
            f"{folder}: its files have tags or numbers in labels.csv, and init writes jobs of classes; "
            "expected class folders; copy params.yaml of a clone and set data.task"
        )
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    looked_at: list[Sample] = [
        source.train[row] for row in spread(len(source.train), _MOST_HEADERS).tolist()
    ]
    sizes = modality.extents(looked_at)
    known = sizes.min(1) > 0
    if not known.all():
        names = [looked_at[row].name for row in np.flatnonzero(~known)]
        note(
            f"{folder}: {len(names):,} of {len(looked_at):,} files that were looked at have no header of "
            f"an image: {first_of(names)}; pipeline prepare refuses those that cannot be read"
        )
    return Survey(
        folder=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        sizes=sizes[known],
    )


def _init_dvc(root: Path) -> None:
    """Create .dvc and .dvcignore; with Git if the working folder is in a Git repository.

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
            f"{root}: DVC cannot begin a project here ({printable(reason)}); expected `dvc init` to work; "
            "mend that, and run the command again"
        )
    made, ours = (root / _DVC / "config").read_text(), _packaged("config")
    without_git = "    no_scm = True\n" if "no_scm" in made else ""
    write_bytes(root / _DVC / "config", ours.replace("[core]\n", f"[core]\n{without_git}", 1).encode())
    write_bytes(root / _DVCIGNORE, _packaged("dvcignore").encode())


def _packaged(name: str) -> str:
    return (files("stages") / "templates" / name).read_text()


def _ignored(root: Path, folder: Path) -> str | None:
    """Return the .gitignore line for photographs inside the working folder; None if outside."""
    photographs = folder.resolve()
    if not photographs.is_relative_to(root.resolve()):
        return None
    # Escape all characters that Git's patterns interpret, including a trailing space.
    escaped = re.sub(r"([\\*?\[\]!# ])", r"\\\1", photographs.relative_to(root.resolve()).as_posix())
    return f"/{escaped}/"
