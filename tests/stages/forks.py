"""Commands in forks of one process that has imported everything once, each killed where it is asked for.

Run as a program it takes a JSON object per line (see `Forks.run`), runs `pipeline ARGUMENTS` in a fork and
answers with the fork's exit status. A change of the file system is a file opened for writing, renamed,
linked, truncated or removed, or a folder made or removed, below the working folder. Each is written as a
line of the trace file before it happens. Before change number `kill_before`, counted from 1, the fork kills
itself with SIGKILL; with `torn`, a file that was to be written is there with a few wrong bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import read_line

ROOT = Path(__file__).parents[2]
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


class Forks:
    """A process that runs commands in forks of itself; they work in this process's working folder."""

    def __enter__(self) -> Self:
        # MKL's sums differ from processor to processor, and pinned values would with them.
        alike = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **alike}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stages.forks"],
            env=environment,
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
        output = folder.with_name(f"{folder.name}.output")
        request = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "kill_before": kill_before,
            "torn": torn,
            "trace": str(self.trace_of(folder)),
            "output": str(output),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = read_line(self._process)
        assert answer, "the process that forks has ended"
        return int(answer), output.read_text(errors="replace")

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
        child = os.fork()
        if not child:
            _run_fork(request)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    _serve()
