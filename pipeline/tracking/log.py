"""The trackers of one run: started together, told of each epoch, and dropped when they fail.

A tracker that cannot start stops the command, since nothing has been done yet. One that fails later, e.g.
for a full disk or a server that is gone, is dropped with one line, and the run goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.core.errors import ConfigError, brief, did_you_mean, quoted
from pipeline.core.files import read_json, write_json
from pipeline.core.hashing import spec_digest
from pipeline.core.own_code import Kind, find_callable, is_own
from pipeline.core.package import extra_command
from pipeline.core.prints import prints_to_stderr
from pipeline.core.progress import note
from pipeline.tracking.libraries import CsvTracker, MlflowTracker, TensorBoardTracker, WandbTracker
from pipeline.tracking.tracker import TrackedRun, Tracker

_KIND = Kind(noun="tracker", returns="a tracker", plural="trackers")


@dataclass(frozen=True, slots=True)
class _Known:
    """A tracker of the table.

    Args:
        start: makes it for a run.
        module: of the library that it needs, which the extra of the tracker's name installs; None for none.
    """

    start: Callable[[TrackedRun], Tracker]
    module: str | None = None


TRACKERS: Mapping[str, _Known] = {
    "csv": _Known(CsvTracker),
    "tensorboard": _Known(TensorBoardTracker, "tensorboard"),
    "mlflow": _Known(MlflowTracker, "mlflow"),
    "wandb": _Known(WandbTracker, "wandb"),
}


def require_names(names: Iterable[str]) -> None:
    """Refuse names of no tracker; user code is not imported.

    Raises:
        ConfigError: a name is unknown, or listed twice.

    >>> require_names(["csv", "mine.trackers:Lines"])
    """
    seen: set[str] = set()
    for name in names:
        if name not in TRACKERS and not is_own(name):
            raise ConfigError(
                f"log lists {quoted(name)}; expected {', '.join(TRACKERS)}, or module:NAME of your own"
                f"{did_you_mean(name, TRACKERS)}"
            )
        if name in seen:
            raise ConfigError(f"log lists {quoted(name)} twice; expected each tracker once; remove one")
        seen.add(name)


def require_installed(names: Iterable[str]) -> None:
    """Refuse trackers whose library is missing, before any work; user code is imported.

    Raises:
        ConfigError: naming the extra that installs the library, or the fault of user code.
    """
    for name in names:
        if name not in TRACKERS:
            find_callable(name, _KIND)
        elif not _is_installed(TRACKERS[name].module):
            raise ConfigError(
                f"tracker {name} needs the library {TRACKERS[name].module}, which is not installed; run: "
                f"{extra_command(name)}, or remove it from training.log"
            )


def _is_installed(module: str | None) -> bool:
    try:
        return module is None or find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class RunLog:
    """The trackers of one run; a context that ends them, however the run ends.

    Args:
        names: of the trackers; empty for none, as in every process but the first.
        run: name, folder and parameters of the run.
        ids: file of the ids that trackers gave unfinished runs, by the digest of a run's identity.
    """

    def __init__(
        self, names: Sequence[str] = (), run: TrackedRun | None = None, ids: Path | None = None
    ) -> None:
        self._names, self._run, self._ids = tuple(names), run, ids
        self._started: dict[str, Tracker] = {}
        self._digest = ""

    def begin(self, identity: Mapping[str, Any], epoch: int) -> None:
        """Start the trackers, which continue an interrupted run of the same identity.

        Args:
            identity: everything that decides the run, as plain values.
            epoch: number of finished epochs.

        Raises:
            ConfigError: a tracker cannot start.
        """
        if not self._names or self._run is None:
            return
        self._digest = spec_digest(identity)
        known = self._known_ids().get(self._digest, {})
        for name in self._names:
            run = replace(self._run, epoch=epoch, continues=known.get(name))
            self._started[name] = _start(name, run)
        self._keep_ids({name: tracker.id for name, tracker in self._started.items()})

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Tell all trackers of a finished epoch; see `Tracker.epoch`."""
        self._tell(lambda tracker: tracker.epoch(number, figures))

    def end(self, figures: Mapping[str, float] | None) -> None:
        """End all trackers; see `Tracker.end`. With figures, the run is finished and never resumes."""
        self._tell(lambda tracker: tracker.end(figures))
        self._started.clear()
        if figures is not None and self._digest:
            self._keep_ids({})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(None)

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._started.items()):
            try:
                with prints_to_stderr():
                    call(tracker)
            except Exception as error:
                del self._started[name]
                note(
                    f"tracker {name} failed: {_described(error)}; the run goes on without it; its "
                    "history.csv will have all epochs"
                )

    def _known_ids(self) -> dict[str, dict[str, str]]:
        if self._ids is None or not self._ids.exists():
            return {}
        try:
            found = read_json(self._ids)
            return {str(digest): dict(ids) for digest, ids in found.items()}
        except (ValueError, TypeError, AttributeError):
            note(f"{self._ids}: damaged; trackers start a new run")
            return {}

    def _keep_ids(self, ids: Mapping[str, str]) -> None:
        """Keep the ids of this run, or forget the run; ids of other unfinished runs stay."""
        if self._ids is None:
            return
        known = {digest: one for digest, one in self._known_ids().items() if digest != self._digest}
        if ids:
            known[self._digest] = dict(ids)
        if known:
            write_json(self._ids, known)
        else:
            self._ids.unlink(missing_ok=True)


def _start(name: str, run: TrackedRun) -> Tracker:
    start = TRACKERS[name].start if name in TRACKERS else find_callable(name, _KIND)
    try:
        with prints_to_stderr():
            tracker: object = start(run)
    except Exception as error:
        raise ConfigError(
            f"tracker {name} cannot start: {_described(error)}; correct its settings, or remove it from "
            "training.log"
        ) from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"tracker {name} returns a {type(tracker).__name__}; expected an object with id, epoch and "
            "end; correct it"
        )
    return tracker


def _described(error: Exception) -> str:
    words = brief(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
