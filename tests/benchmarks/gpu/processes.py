"""Run one step in a separate process group: start, wait, stop, record. Imports no torch."""

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
# Seconds that a step needs to start; and seconds between the request to stop and the kill.
LEAST_SECONDS, GRACE_SECONDS = 10.0, 5.0
NO_DEVICE = 3
_LINES = 15


class CutOff(BaseException):
    """The check itself was interrupted."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True, kw_only=True)
class Plan:
    """The steps to run, and the time used so far.

    Args:
        out: folder for results.
        device: torch's name of the device.
        small: use small sizes, to try the check itself.
        seconds: time for all steps.
        command: the command line.
        granted: sum of the time limits of all steps so far, in seconds.
        no_device: message of the first step that found no device; later steps are skipped.
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
        """Return a step's time limit: its own seconds plus the time that earlier steps left."""
        self.granted += step.seconds * self.seconds / FULL_SECONDS
        return min(self.granted, self.seconds) - (time.monotonic() - self._start)


def run_step(plan: Plan, step: Step) -> None:
    """Run a step, unless time or device is missing, and complete its file.

    Raises:
        CutOff: the check was interrupted; the step's file says so.
    """
    file, limit = plan.out / f"{step.name}.json", plan.grant(step)
    file.unlink(missing_ok=True)
    if plan.no_device or limit < LEAST_SECONDS:
        reason = plan.no_device or f"only {max(0.0, limit):.0f} seconds are left"
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
    """Run a step with a separate folder for temporary files; return its status for the file."""
    with (folder / "output").open("w+b") as output:
        process = None
        try:
            # A step may end the check as soon as it runs, before `wait` begins.
            process = _started(called(plan, step, file), folder, output)
            code = process.wait(limit)
        except CutOff as stopped:
            lines = [] if process is None else _ended(process, output)
            return {"status": "cut off", "cut_off": stopped.number, "last_lines": lines}
        except subprocess.TimeoutExpired:
            assert process is not None
            return {"status": "out of time", "limit": limit, "last_lines": _ended(process, output)}
        lines = _ended(process, output)
    if code == 0:
        return {"status": "done"}
    if code == NO_DEVICE:
        plan.no_device = lines[-1] if lines else "no device"
    return {"status": "failed", "exit_status": code, "last_lines": lines}


def called(plan: Plan, step: Step, file: Path) -> list[str]:
    """Return the command line of a step."""
    asked = [step.name, str(file), "--device", plan.device, *(["--small"] if plan.small else [])]
    return [sys.executable, "-m", "tests.benchmarks.gpu.run_step", *asked]


def _started(command: list[str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),  # removed even if the step is killed, together with compiled kernels
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
    """Stop a process and its children; return the last lines of their output."""
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
    """Add the driver's information to a step's file, or create the file."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        content = {"step": step.name, "device": plan.device, "small": plan.small}
    write(file, {**content, "command": shlex.join(plan.command), **told})
    for rest in plan.out.glob(f".{file.name}.*"):
        rest.unlink(missing_ok=True)
