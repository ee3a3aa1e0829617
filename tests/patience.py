"""Wait for other processes as long as they work, however busy the machine is.

A limit in seconds fails on a busy machine. A hanging process uses no processor time, a starved one uses
some. A wait therefore fails after minutes with hardly any processor time.
"""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil

# Beside eight busy neighbours on two processors, a working process gets at least a tenth of one.
HANGING_SECONDS = 300.0
_HANGING_SHARE = 0.01
_LOOK_SECONDS = 5.0


class Watch:
    """Detect that a process and its children hang.

    Args:
        process: the process.
        seconds: duration of hardly any work that counts as a hang.
    """

    def __init__(self, process: subprocess.Popen[Any], seconds: float = HANGING_SECONDS) -> None:
        self._process, self._seconds = process, seconds
        self._since, self._worked = time.monotonic(), self._work()

    def look(self) -> None:
        """Kill the process and fail if it hangs."""
        now, worked = time.monotonic(), self._work()
        if abs(worked - self._worked) > _HANGING_SHARE * self._seconds:
            self._since, self._worked = now, worked
        elif now - self._since > self._seconds:
            self._kill()
            raise AssertionError(f"{self._process.args} hangs: no work in {self._seconds:g} s")

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def _work(self) -> float:
        """Return the processor time of the process and its children; it also changes if one ends."""
        total = 0.0
        for each in self._tree():
            with suppress(psutil.Error):
                total += sum(each.cpu_times()[:2])
        return total

    def _kill(self) -> None:
        for each in self._tree():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.communicate()


def finish(process: subprocess.Popen[Any], seconds: float = HANGING_SECONDS) -> tuple[Any, Any]:
    """Wait until a process has ended; return its stdout and stderr.

    Raises:
        AssertionError: the process hangs.
    """
    watch = Watch(process, seconds)
    while True:
        try:
            return process.communicate(timeout=min(_LOOK_SECONDS, seconds))
        except subprocess.TimeoutExpired:
            watch.look()


def call(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its status and output."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(word) for word in command], **{**pipes, **options}) as process:
        out, err = finish(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_line(process: subprocess.Popen[str], seconds: float = HANGING_SECONDS) -> str:
    """Return the next line of a process's stdout; "" if the process ends without one.

    Raises:
        AssertionError: the process hangs.
    """
    watch = Watch(process, seconds)
    # The process writes a line only when asked, so none waits in the stream's own buffer.
    while not select.select([process.stdout], [], [], min(_LOOK_SECONDS, seconds))[0]:
        watch.look()
    return process.stdout.readline()


def until(
    condition: Callable[[], bool], process: subprocess.Popen[Any], pause_seconds: float = 0.005
) -> bool:
    """Wait until a condition holds; return False if the process ended before.

    Raises:
        AssertionError: the process hangs.
    """
    watch, looked = Watch(process), time.monotonic()
    while not condition():
        if process.poll() is not None:
            return condition()
        time.sleep(pause_seconds)
        if time.monotonic() - looked > _LOOK_SECONDS:
            watch.look()
            looked = time.monotonic()
    return True
