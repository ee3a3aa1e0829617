"""Commands in forks of one process that has imported everything once, each killed where it is asked for.

Run as a program it takes a JSON object per line (see `Forks`), runs `pipeline ARGUMENTS` in a fork and
answers with the fork's exit status, or at once with its number. A change of the file system is a file that
is opened for writing, renamed, linked, truncated or removed, or a folder made or removed, below the working
folder. Each is written as a line of the trace file before it happens. Before change number `kill_before`,
counted from 1, the fork kills itself with SIGKILL; with `torn`, a file that was to be written is there with
a few wrong bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import read_line, until

ROOT = Path(__file__).parents[2]
# For processes whose results are compared or pinned: MKL's sums differ from processor to processor.
ALIKE = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
STAGES = (
    "prepare",
    "train_teacher",
    "cache_logits",
    "train_student",
    "report",
    "verify",
    "inspect",
    "plan",
    "export",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (0, 1),
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate"), (0,)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
}


class Fork:
    """A command that runs: what `tests.patience` needs of a process, and a signal for it.

    Args:
        ask: asks the process that forked it for its status.
        pid: its process.
        output: file of its output.
    """

    def __init__(self, ask: Callable[[dict[str, Any]], int | None], pid: int, output: Path) -> None:
        self._ask, self.pid, self._output = ask, pid, output
        self.args, self.returncode = f"fork {pid}", None

    def poll(self) -> int | None:
        """Return the exit status, as subprocess gives it, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> None:
        """Wait for its end; a killed process ends soon."""
        until(lambda: False, self)

    def finish(self) -> str:
        """Wait for its end; return its output."""
        until(lambda: False, self)
        return self._output.read_text(errors="replace")


class Forks:
    """A process that runs commands in forks of itself; they work in this process's working folder."""

    def __init__(self) -> None:
        self._started = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stages.forks"],
            env={**os.environ, **ALIKE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(
        self, folder: Path, *arguments: object, kill_before: int | None = None, torn: bool = False
    ) -> tuple[int, str]:
        """Run a command in a folder; return its exit status, as subprocess gives it, and its output."""
        request = self._request(folder, arguments) | {"kill_before": kill_before, "torn": torn}
        return self._ask(request), Path(request["output"]).read_text(errors="replace")

    def start(self, folder: Path, *arguments: object) -> Fork:
        """Start a command in a folder."""
        self._started += 1
        request = self._request(folder, arguments)
        request["output"] += f".{self._started}"
        return Fork(self._ask, self._ask({**request, "goes_on": True}), Path(request["output"]))

    def _request(self, folder: Path, arguments: tuple[object, ...]) -> dict[str, Any]:
        return {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "kill_before": None,
            "torn": False,
            "goes_on": False,
            "trace": str(self.trace_of(folder)),
            "output": str(folder.with_name(f"{folder.name}.output")),
        }

    def _ask(self, request: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = read_line(self._process)
        assert answer, "the process that forks has ended"
        return json.loads(answer)

    def trace_of(self, folder: Path) -> Path:
        """Return the file that names each change of the last command, one per line."""
        return folder.with_name(f"{folder.name}.trace")


def _watch(trace: int, folder: str, kill_before: int | None, *, torn: bool) -> None:
    """Count this process's changes of the file system from now on, and end it before one of them."""
    count = 0

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            changed = (0,) if (arguments[2] or 0) & _WRITING else ()
        else:
            changed = _CHANGES.get(event, ())
        paths = [
            os.fsdecode(arguments[k])
            for k in changed
            if isinstance(arguments[k], (str, bytes, os.PathLike))
        ]
        if not any(os.path.abspath(path).startswith(folder) for path in paths):
            return
        count += 1
        os.write(trace, f"{event} {' '.join(paths)}\n".encode())
        if count == kill_before:
            if torn and event == "open":
                os.write(os.open(paths[0], arguments[2], 0o666), b"torn")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)


def _run_fork(request: dict[str, Any]) -> None:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    trace = os.open(request["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    status = 1
    try:
        from stages.cli import main

        _watch(trace, os.getcwd() + os.sep, request["kill_before"], torn=request["torn"])
        main(request["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve() -> None:
    import torch

    for name in (*(f"stages.{stage}" for stage in STAGES), "stages.params_file", "torchvision"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = request.get("poll") or os.fork()
        if not child:
            _run_fork(request)
        if request.get("goes_on"):
            print(child, flush=True)
            continue
        ended, status = os.waitpid(child, os.WNOHANG if "poll" in request else 0)
        print(os.waitstatus_to_exitcode(status) if ended else "null", flush=True)


if __name__ == "__main__":
    _serve()
