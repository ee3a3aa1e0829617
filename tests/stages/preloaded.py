"""The programs `pipeline`, `dvc` and `torchrun` as forks of one process that has imported all three.

Importing torch and DVC takes seconds, and a fork milliseconds; a test of DVC starts dozens of processes.
`python -m tests.stages.preloaded SOCKET` listens for the three small programs that `Preloaded` writes into
a folder for PATH. Each sends its name, arguments, working folder, environment and standard streams, passes
SIGINT and SIGTERM on to its fork, and ends with the fork's status.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
IMPORTED = (
    *(f"stages.{name}" for name in ("prepare", "train_teacher", "cache_logits", "train_student", "report")),
    *("stages.verify", "stages.rehead", "torchvision"),
    *(
        "torch.distributed.run",
        "dvc.cli",
        "dvc.repo",
        "dvc.commands.repro",
        "dvc.stage.run",
        "dvc_data.index",
    ),
)
CLIENT = """#!{python} -ISE
import ctypes, json, os, signal, socket, sys, time
if "DVC_STAGE" in os.environ:  # as `stages.runtime.die_with_parent`
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
server = socket.socket(socket.AF_UNIX)
while True:
    try:
        server.connect({address!r})
        break
    except (FileNotFoundError, ConnectionRefusedError):
        if not os.path.exists({running!r}):
            sys.exit("the process that has imported everything is gone")
        time.sleep(0.05)
request = dict(program=os.path.basename(sys.argv[0]), arguments=sys.argv[1:], folder=os.getcwd())
request["environment"] = dict(os.environ)
body = json.dumps(request).encode()
socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
server.sendall(body)
fork = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
status = server.recv(1)
sys.exit(status[0] if status else "the fork was killed")
"""


class Preloaded:
    """A process that runs `pipeline`, `dvc` and `torchrun` in forks of itself.

    Args:
        folder: an empty folder, whose name is short, for the three programs; put it before PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.programs = folder
        self._address = folder / "socket"

    def __enter__(self) -> Self:
        running = self.programs / "running"
        running.touch()
        client = CLIENT.format(python=sys.executable, address=str(self._address), running=str(running))
        for name in ("pipeline", "dvc", "torchrun"):
            (self.programs / name).write_text(client)
            (self.programs / name).chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stages.preloaded", str(self._address)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self.programs / "running").unlink()
        self._process.stdin.close()
        self._process.wait()


def _serve(address: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    # The kernel reaps the forks: each tells its client how it ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        # The end of stdin is the end of the tests, also where they are killed.
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                _run(client)
            client.close()


def _run(client: socket.socket) -> None:
    """Be the program that a client asks for."""
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    request: dict[str, Any] = json.loads(_receive(client, int.from_bytes(head, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, handler in (
        (signal.SIGCHLD, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        signal.signal(number, handler)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [request["program"], *request["arguments"]]
    client.sendall(os.getpid().to_bytes(8, "big"))
    status = 1
    try:
        if request["program"] == "dvc":
            from dvc.cli import main as dvc

            status = dvc(request["arguments"])
        elif request["program"] == "torchrun":
            from torch.distributed.run import main as torchrun

            torchrun(request["arguments"])
            status = 0
        else:
            from stages.cli import main as pipeline

            pipeline(request["arguments"])
            status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    client.sendall(bytes([status & 255]))
    os._exit(status)


def _receive(client: socket.socket, size: int) -> bytes:
    body = b""
    while len(body) < size:
        body += client.recv(size - len(body))
    return body


if __name__ == "__main__":
    _serve(sys.argv[1])
