"""Support for DVC: allowed folders of outputs, limits of experiments, links into its cache."""

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
from pipeline.core.text import parse_yaml
from pipeline.places.folder import Root
from stages import paths

# Folders of the outputs in dvc.yaml.
_OUTPUTS = {
    "prepare": [paths.PREPARED.parent],
    "train-teacher": [paths.TEACHERS, paths.RUNS],
    "cache-logits": [paths.LOGITS],
    "rehead": [paths.LOGITS],
    "train-student": [paths.STUDENTS, paths.RUNS],
    "report": [paths.REPORTS],
}
_DUMPING = ("cache-logits", "average-logits", "rehead", "probe")
_WAIT_SECONDS = 60.0


def is_stage() -> bool:
    """Whether DVC started this process."""
    return "DVC_STAGE" in os.environ


def require_outputs_inside(arguments: Sequence[str]) -> None:
    """Refuse a stage early if DVC would refuse its outputs after the work is done.

    An output that is itself a link, e.g. `data/prepared`, is allowed: DVC follows it.

    Args:
        arguments: of the command line.

    Raises:
        ConfigError: a folder of the outputs leads out of the repository.
    """
    elsewhere = any(argument.partition("=")[0] == "--out" for argument in arguments)
    if not is_stage() or elsewhere:
        return
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for folder in _OUTPUTS.get(command, []):
        if not folder.resolve().is_relative_to(root):
            raise ConfigError(
                f"{folder}: is a link out of the repository, to {folder.resolve()}; DVC tracks only "
                "folders inside; use a real folder and move DVC's cache instead (dvc cache dir PLACE), or "
                "run the command without DVC"
            )


def require_pointer_stage() -> None:
    """Refuse a stage early if dvc.yaml expects the store itself, which `places.logits` puts elsewhere.

    Raises:
        ConfigError: the stage of dumps has no pointer among its outputs.
    """
    if not is_stage():
        return
    try:
        stages = parse_yaml(Path("dvc.yaml").read_text())["stages"]
        outs = [out for name in _DUMPING if name in stages for out in stages[name]["do"]["outs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # laid out by someone else: DVC compares the outputs afterwards
    if any(".zarr" in str(out) for out in outs):
        raise ConfigError(
            "dvc.yaml: the stage of dumps lists a store as its output, but places.logits puts stores "
            "elsewhere; expected data/logits/${key}.json and no store; see stages/README.md, or remove "
            "places.logits"
        )


@contextmanager
def naming_experiments() -> Iterator[None]:
    """Explain a store mismatch in a DVC experiment, which cannot change a dump, only add views.

    Raises:
        MismatchError: reworded for an experiment, whose folder may be deleted afterwards.
    """
    try:
        yield
    except MismatchError as error:
        if "DVC_EXP_BASELINE_REV" not in os.environ:
            raise
        found = str(error).partition("; a store is never")[0]
        raise MismatchError(
            f"{found}; an experiment can only add views to a dump; for other changes, define a dump with a "
            "new name in params.yaml and list it in sweep.dumps"
        ) from None


def cached_objects(store: Root, names: Iterable[str]) -> list[Path]:
    """Return the objects of DVC's cache to which these files are links.

    Args:
        store: a folder, inside or outside a repository, or a place, which DVC does not know.
        names: some of its files.
    """
    if not isinstance(store, Path):
        return []
    files = [store / name for name in names]
    linked = {_identity(file) for file in files if file.exists() and _is_linked(file)}
    cache = _cache_of(store) if linked else None
    if cache is None:
        return []
    return sorted(found for found in cache.glob("files/md5/??/*") if _identity(found) in linked)


def tell_damaged_cache(store: Root, files: Iterable[str]) -> None:
    """Print how to restore damaged files that are links into DVC's cache; dvc checkout cannot.

    Args:
        store: the store's folder.
        files: names of damaged files in it.
    """
    if damaged := cached_objects(store, files):
        cache = f"{store}: DVC's cache has the same damage, so dvc checkout cannot restore it"
        fetch = f"; if a remote has it, run: rm -f {_listed(damaged)} && dvc pull --force {store}"
        note(f"{cache}{fetch if _has_remote(store) else ''}")


def tell_cache_to_mend(store: Root, damaged: Sequence[Path]) -> None:
    """Print how to repair objects of DVC's cache that share the damage of a repaired store."""
    if damaged:
        note(
            f"{store}: DVC's cache still has the damage, and dvc push would send it; run: rm -f "
            f"{_listed(damaged)} && dvc commit -f {store}"
        )


def _has_remote(store: Root) -> bool:
    """Whether the repository that contains a store names a remote."""
    root = _repository_of(store) if isinstance(store, Path) else None
    files = [] if root is None else [root / ".dvc/config", root / ".dvc/config.local"]
    return any('remote "' in file.read_text(errors="replace") for file in files if file.is_file())


def _listed(files: Iterable[Path]) -> str:
    return " ".join(shlex.quote(str(file)) for file in files)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _is_linked(file: Path) -> bool:
    return file.is_symlink() or file.stat().st_nlink > 1


def _repository_of(store: Path) -> Path | None:
    """Return the folder of the repository that contains a store, or None."""
    return next((folder for folder in store.absolute().parents if (folder / ".dvc").is_dir()), None)


def _cache_of(store: Path) -> Path | None:
    """Return the cache folder of the repository that contains a store, or None."""
    root = _repository_of(store)
    if root is None:
        return None
    asked = [sys.executable, "-m", "dvc", "cache", "dir"]
    try:
        told = subprocess.run(asked, cwd=root, capture_output=True, text=True, timeout=_WAIT_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return root / ".dvc" / "cache"
    return root / (told.stdout.strip() or ".dvc/cache") if told.returncode == 0 else root / ".dvc" / "cache"
