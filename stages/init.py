"""`pipeline init`: set up a project in the working folder for a folder of photographs or sounds.

Owns the checks and the written files; `fit.py` and `fit_audio.py` own the parameters. Nothing is
overwritten, and nothing is written before all checks have passed.
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
from numpy.typing import NDArray

from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError, DataError, brief, first_of, printable, quoted
from pipeline.core.files import write_bytes
from pipeline.core.progress import note
from pipeline.modalities.modality import Modality, Recognised
from pipeline.modalities.table import MODALITIES, families, find_modality
from pipeline.samples.samples import Sample, Source
from stages import paths
from stages.failures import say
from stages.fit import Survey, find_teacher, fit
from stages.fit_audio import ClipSurvey, fit_clips
from stages.options import debuggable
from stages.render import render, stages_of

_PARAMS, _STAGES, _GITIGNORE = "params.yaml", "dvc.yaml", ".gitignore"
_DVC, _DVCIGNORE = ".dvc", ".dvcignore"
_WRITTEN = (_PARAMS, _STAGES, _GITIGNORE, _DVC, _DVCIGNORE)
_OUTPUTS = (paths.PREPARED, paths.LOGITS, paths.TEACHERS, paths.STUDENTS, paths.RUNS, paths.REPORTS)
# Number of headers to read; more would not change a choice.
_MOST_HEADERS = 2_000
_WAIT_SECONDS = 120.0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@debuggable
def command(folder: Path) -> None:
    """Begin a project in the working folder with the photographs or sounds in FOLDER, which is only read.

    FOLDER holds train/CLASS/* and test/CLASS/* (or val/CLASS/*), or CLASS/* alone: then about 20 % of the
    files, each drawn by the hash of its name, are the test split. Writes params.yaml, fitted to the
    classes and sizes found, dvc.yaml, .dvc, .dvcignore and .gitignore, and overwrites nothing. After it:
    dvc repro.
    """
    root = Path.cwd()
    _require_new(root)
    _require_apart(root, folder)
    named = _as_named(folder)
    for modality in MODALITIES:
        if found := modality.recognise(folder, named):
            _write(root, folder, modality, *_for_sounds(modality, found, folder, named))
            return
    survey = _look(folder, named)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    installed = [one for family in families() for one in family.installed()]
    params = render("params.yaml.j2", **fit(survey, installed, device))
    told = [str(survey)]
    if find_teacher(installed, device) is None:
        told.append("no pretrained weights are on this machine, so the teacher is trained from scratch")
    _write(root, folder, find_modality(), params, told)


def _write(root: Path, folder: Path, modality: Modality, params: str, told: list[str]) -> None:
    """Write the files of a project, and say what was found."""
    texts = {
        _PARAMS: params,
        _STAGES: stages_of(modality),
        _GITIGNORE: render("gitignore.j2", data=_ignored(root, folder)),
    }
    _init_dvc(root)
    for name, text in texts.items():
        write_bytes(root / name, text.encode())
    for line in told:
        say(f"{folder}: {line}")
    say(f"written: {', '.join(_WRITTEN)}; next: dvc repro")


def _for_sounds(modality: Modality, found: Recognised, folder: Path, named: str) -> tuple[str, list[str]]:
    """Return the text of params.yaml for recognised sounds, and lines about them."""
    source = modality.open_source(found.source, modality.options_type(**found.options))
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    survey = ClipSurvey(
        source=found.source,
        watch=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        headers=_headers(folder, modality, source, "a sound file"),
    )
    return render("params-audio.yaml.j2", **fit_clips(survey)), [str(survey)]


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
    if left_out := str(source.left_out):
        note(f"left out: {left_out}")
    return Survey(
        folder=named,
        classes=len(source.classes),
        train=len(source.train),
        validation=None if source.validation is None else len(source.validation),
        test=len(source.test),
        sizes=_headers(folder, modality, source, "an image"),
    )


def _headers(folder: Path, modality: Modality, source: Source, kind: str) -> NDArray[np.int64]:
    """Return the extents (n, k) in up to `_MOST_HEADERS` headers; tell of files without one."""
    looked_at: list[Sample] = [
        source.train[row] for row in spread(len(source.train), _MOST_HEADERS).tolist()
    ]
    extents = modality.extents(looked_at)
    known = extents.min(1) > 0
    if not known.all():
        names = [looked_at[row].name for row in np.flatnonzero(~known)]
        note(
            f"{folder}: {len(names):,} of {len(looked_at):,} files that were looked at have no header of "
            f"{kind}: {first_of(names)}; pipeline prepare refuses those that cannot be read"
        )
    found: NDArray[np.int64] = extents[known]
    return found


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
