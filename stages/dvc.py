"""What the stages know of DVC: where outputs may lie, what experiments can change, its links."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import ConfigError, MismatchError
from pipeline.core.progress import note
from stages import paths

# The folders in which the outputs are that dvc.yaml names.
_OUTPUTS = {
    "prepare": [paths.PREPARED.parent],
    "train-teacher": [paths.TEACHERS, paths.RUNS],
    "cache-logits": [paths.LOGITS],
    "train-student": [paths.STUDENTS, paths.RUNS],
    "report": [paths.REPORTS],
}
_WAIT_SECONDS = 60.0


def is_stage() -> bool:
    """Whether DVC started this process."""
    return "DVC_STAGE" in os.environ


def require_outputs_inside(arguments: Sequence[str]) -> None:
    """Refuse a stage whose outputs DVC would refuse when its work is done.

    An output that is a link itself, such as `data/prepared`, is none of these: DVC follows it.

    Args:
        arguments: of the command line.

    Raises:
        ConfigError: a folder of its outputs leads out of the repository.
    """
    elsewhere = any(argument.partition("=")[0] == "--out" for argument in arguments)
    if not is_stage() or elsewhere:
        return
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for folder in _OUTPUTS.get(command, []):
        if not folder.resolve().is_relative_to(root):
            raise ConfigError(
                f"{folder}: leads out of the repository, to {folder.resolve()}; expected one in it, as "
                "DVC keeps no others; make it one and put DVC's cache there instead (dvc cache dir PLACE), "
                "or run the command without DVC"
            )


@contextmanager
def naming_experiments() -> Iterator[None]:
    """Say in an experiment of DVC that it cannot change what a dump is made of.

    Raises:
        MismatchError: a store is made from something else; in words that are right in an experiment too,
            whose folder may be gone afterwards.
    """
    try:
        yield
    except MismatchError as error:
        if "DVC_EXP_BASELINE_REV" not in os.environ:
            raise
        found = str(error).partition("; a dump is never")[0]
        raise MismatchError(
            f"{found}; an experiment cannot change what a dump is made of, only add views: give it another "
            "name under dumps in params.yaml, and name that in sweep.dumps"
        ) from None


def cached_objects(store: Path, files: Iterable[Path]) -> list[Path]:
    """Return the objects of DVC's cache that are the same file as one of these: their links.

    Args:
        store: a folder in a repository, or in none.
        files: some of its files.
    """
    linked = {_identity(file) for file in files if file.exists() and _is_linked(file)}
    cache = _cache_of(store) if linked else None
    if cache is None:
        return []
    return sorted(found for found in cache.glob("files/md5/??/*") if _identity(found) in linked)


def tell_damaged_cache(store: Path, files: Iterable[str]) -> None:
    """Say how to restore damaged files that are links to DVC's cache: dvc checkout would not help.

    Args:
        store: the store's folder.
        files: names of damaged files in it.
    """
    if damaged := cached_objects(store, [store / name for name in files]):
        note(
            f"{store}: DVC's cache has the same damage, so dvc checkout cannot restore it; mend it with: "
            f"pipeline verify {store} --repair, or run: rm -f {_listed(damaged)} && dvc pull --force "
            f"{store}"
        )


def tell_cache_to_mend(store: Path, damaged: Sequence[Path]) -> None:
    """Say how to mend objects of DVC's cache that have the damage of a store that was repaired."""
    if damaged:
        note(
            f"{store}: DVC's cache still has the damage, and dvc push would send it; run: rm -f "
            f"{_listed(damaged)} && dvc commit -f {store}"
        )


def _listed(files: Iterable[Path]) -> str:
    return " ".join(shlex.quote(str(file)) for file in files)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _is_linked(file: Path) -> bool:
    return file.is_symlink() or file.stat().st_nlink > 1


def _cache_of(store: Path) -> Path | None:
    """Return the folder of the cache of the repository around a store, if there is one."""
    root = next((folder for folder in store.absolute().parents if (folder / ".dvc").is_dir()), None)
    if root is None:
        return None
    asked = [sys.executable, "-m", "dvc", "cache", "dir"]
    try:
        told = subprocess.run(asked, cwd=root, capture_output=True, text=True, timeout=_WAIT_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return root / ".dvc" / "cache"
    return root / (told.stdout.strip() or ".dvc/cache") if told.returncode == 0 else root / ".dvc" / "cache"
