"""Run the slow campaigns: commands killed before each file-system change, damaged files, forged stores.

    python -m tests.benchmarks.campaigns [--jobs 2] [--minutes 600] [--since COMMIT] [--out FILE.json]

Runs each test marked `slow` in a separate process, new tests first, and saves its counts when it finishes.
An interrupted run resumes with the same command. Failed campaigns run again, and those whose results are of
another version of the code, identified by its git trees; with --since, this commit and later ones count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json
from tests.benchmarks.environment import environment

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results") / "campaigns.json"
FILES = (
    *("tests/stages/test_kills.py", "tests/stages/test_damaged_files.py"),
    *("tests/stages/test_interruption.py", "tests/pipeline/store/test_forged.py"),
    "tests/pipeline/store/test_corruption.py",
)


def code(commit: str = "HEAD") -> str:
    """Return the identity of the tested code: the git trees of the library and of the commands."""
    return "-".join(git("rev-parse", f"{commit}:{folder}")[:12] for folder in ("pipeline", "stages"))


def accepted(since: str | None) -> set[str]:
    """Return the identities of the code of HEAD and, if one is named, of a commit and all later ones."""
    later = git("rev-list", f"{since}^..HEAD").split() if since else []
    return {code(), *map(code, later)}


def git(*arguments: str) -> str:
    """Return what git prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def slow_tests() -> list[str]:
    """Return the names of all campaigns."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "slow", *FILES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "::" in line]


def run(test: str) -> dict[str, Any]:
    """Run one campaign; return whether it passed, its output and its duration."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "slow", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = [line.lstrip(".") for line in done.stdout.splitlines() if ": " in line and "FAILED" not in line]
    result = {"passed": done.returncode == 0, "told": told[-1] if told else "", "code": code()}
    if done.returncode:
        result["failure"] = done.stdout[-2000:]
    return {**result, "minutes": round((time.monotonic() - start) / 60, 1)}


def main() -> None:
    """Run the campaigns without a result for this code, and print one line per campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--since", help="count results of this commit's code, and of later commits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    known: Mapping[str, Any] = json.loads(given.out.read_text())["tests"] if given.out.exists() else {}
    found, end = dict(known), time.monotonic() + 60 * given.minutes
    counts = accepted(given.since)
    done = {test for test, result in found.items() if result["passed"] and result["code"] in counts}
    waiting = [test for test in slow_tests() if test not in done]
    waiting.sort(key=lambda test: test in found)

    def run_in_time(test: str) -> dict[str, Any] | None:
        return run(test) if time.monotonic() < end else None

    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(run_in_time, test): test for test in waiting}
        for future in as_completed(running):
            result = future.result()
            if result is None:
                continue
            found[running[future]] = result
            write_json(given.out, {"environment": environment(), "tests": dict(sorted(found.items()))})
            print(f"{'passed' if result['passed'] else 'FAILED'} {running[future]}: {result['told']}")


if __name__ == "__main__":
    main()
