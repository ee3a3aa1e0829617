"""One step in a process group of its own: started, waited for, ended, told in its file. No torch here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.gpu.findings import write
from tests.benchmarks.gpu.steps import FULL_SECONDS, Step

ROOT = Path(__file__).parents[3]
# What a step needs to begin; and what it has between being asked to end and being killed.
LEAST_SECONDS, GRACE_SECONDS = 10.0, 5.0
NO_DEVICE = 3
_LINES = 15


class CutOff(BaseException):
    """The check itself was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is run, and how much of the time is used.

    Args:
        out: where results go.
        device: as torch names it.
        small: to try the check itself.
        seconds: for all steps.
        command: that was called.
        granted: seconds of the limits of all steps so far.
        no_device: what the first step said that found no device; those behind it are not run.
    """

    out: Path
    device: str
    small: bool
    seconds: float
    command: list[str]
    granted: float = 0.0
    no_device: str = ""
    _start: float = field(default_factory=lambda: time.monotonic())

    def grant(self, step: Step) -> float:
        """Return a step's limit: its own seconds and those that earlier steps have left."""
        self.granted += step.seconds * self.seconds / FULL_SECONDS
        return min(self.granted, self.seconds) - (time.monotonic() - self._start)


def run_step(plan: Plan, step: Step) -> None:
    """Run a step, unless there is no time or no device, and complete its file.

    Raises:
        CutOff: the check was told to end; the step's file says so.
    """
    file, limit = plan.out / f"{step.name}.json", plan.grant(step)
    file.unlink(missing_ok=True)
    if plan.no_device or limit < LEAST_SECONDS:
        reason = plan.no_device or f"{max(0.0, limit):.0f} seconds are left"
        _complete(plan, step, file, {"status": "not run", "reason": reason})
        return
    print(f"{step.name}: at most {limit:.0f} s", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        told = _told(plan, step, file, limit, Path(folder))
    told["seconds"] = round(time.monotonic() - start, 1)
    _complete(plan, step, file, told)
    print(f"{step.name}: {told['status']} after {told['seconds']} s", flush=True)
    if "cut_off" in told:
        raise CutOff(told["cut_off"])


def _told(plan: Plan, step: Step, file: Path, limit: float, folder: Path) -> dict[str, Any]:
    """Run a step in a folder of its own for temporary files; return what is to be said of it."""
    with (folder / "output").open("w+b") as output:
        process = _started(called(plan, step, file), folder, output)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"status": "out of time", "limit": limit, "last_lines": _ended(process, output)}
        except CutOff as stopped:
            lines = _ended(process, output)
            return {"status": "cut off", "cut_off": stopped.number, "last_lines": lines}
        lines = _ended(process, output)
    if code == 0:
        return {"status": "done"}
    if code == NO_DEVICE:
        plan.no_device = lines[-1] if lines else "no device"
    return {"status": "failed", "exit_status": code, "last_lines": lines}


def called(plan: Plan, step: Step, file: Path) -> list[str]:
    """Return the command of a step."""
    asked = [step.name, str(file), "--device", plan.device, *(["--small"] if plan.small else [])]
    return [sys.executable, "-m", "tests.benchmarks.gpu.run_step", *asked]


def _started(command: list[str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),  # removed also where the step is killed, kernels that were compiled too
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _ended(process: subprocess.Popen[bytes], output: IO[bytes]) -> list[str]:
    """End a process and all that it has started; return the last lines of what they said."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    process.wait()
    output.flush()
    output.seek(0)
    return output.read().decode(errors="replace").replace("\r", "\n").splitlines()[-_LINES:]


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _complete(plan: Plan, step: Step, file: Path, told: dict[str, Any]) -> None:
    """Add to a step's file, or make it, what only the driver knows."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        content = {"step": step.name, "device": plan.device, "small": plan.small}
    write(file, {**content, "command": shlex.join(plan.command), **told})
    for rest in plan.out.glob(f".{file.name}.*"):
        rest.unlink(missing_ok=True)
