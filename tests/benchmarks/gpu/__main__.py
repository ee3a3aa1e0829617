"""The driver: run the steps in order, each in a separate process group, until the time is used up."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import tests.benchmarks.gpu as check
from tests.benchmarks.gpu.processes import CutOff, Plan, run_step
from tests.benchmarks.gpu.steps import STEPS, Step
from tests.benchmarks.gpu.table import markdown, read_results

_ENDING = (signal.SIGTERM, signal.SIGINT)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in STEPS]
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="time for all steps; their limits scale with it"
    )
    parser.add_argument("--out", type=Path, help="folder for results; a new one by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small trial run; always on with a CPU")
    parser.add_argument("--steps", default=",".join(names), help="steps to run, separated by commas")
    given = parser.parse_args(arguments)
    chosen = given.steps.split(",")
    given.steps = [step for step in STEPS if step.name in chosen]
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown steps {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    if given.minutes <= 0:
        parser.error("--minutes must be above 0")
    return given


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let the first SIGTERM or SIGINT raise `CutOff`, so that processes are stopped and results saved."""

    def cut_off(number: int, _: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise CutOff(number)

    before = {number: signal.signal(number, cut_off) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(plan: Plan, steps: Sequence[Step]) -> int:
    """Run steps and return the exit status."""
    try:
        with signals_raise():
            for step in steps:
                run_step(plan, step)
                _write_table(plan.out)
    except CutOff as stopped:
        _write_table(plan.out)
        return 128 + stopped.number
    return int(any(result["status"] == "failed" for result in read_results(plan.out, steps)))


def _write_table(out: Path) -> None:
    (out / "table.md").write_text(markdown(read_results(out)))


def main() -> None:
    """Run the selected steps and print the table."""
    given = parsed()
    out = given.out or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    out.mkdir(parents=True, exist_ok=True)
    small = given.small or given.device == "cpu"
    plan = Plan(
        out=out.resolve(),
        device=given.device,
        small=small,
        seconds=60 * given.minutes,
        command=["python", "-m", "tests.benchmarks.gpu", *sys.argv[1:]],
    )
    status = run_all(plan, given.steps)
    print((out / "table.md").read_text(), flush=True)
    print(f"results: {out}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
