"""The tests that need a CUDA device, in parallel, the most informative first, each recorded at its end."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.processes import ROOT

MARKER = "pytest.mark.cuda"
# Bytes of stores first, then waits, then pixels; all other tests come later.
FIRST = (
    "pipeline/codecs/test_codecs.py",
    "pipeline/codecs/test_features.py",
    "pipeline/dump/test_run.py",
    "pipeline/dump/test_encode.py",
    "pipeline/training/test_waiting.py",
    "pipeline/losses/test_every_loss.py",
    "pipeline/modalities/images/rendering/test_device.py",
)
_MESSAGE_CHARACTERS, _FAILURES = 600, 100
# Interrupted by an unreadable file, which counts as a failure.
_RAN = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)


class Recorder:
    """A pytest plugin that records the end of every test; with pytest-xdist, of the tests in all workers.

    Args:
        findings: file for counts and failures.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings, self._counts = findings, Counter[str](passed=0, failed=0, skipped=0)
        self._failures: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test, or its failed setup."""
        if report.when == "call" or report.outcome != "passed":
            self._counts[report.outcome] += 1
            self._tell(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count an unreadable file."""
        if report.outcome == "failed":
            self._counts["failed"] += 1
            self._tell(report)

    def _tell(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.outcome == "failed" and len(self._failures) < _FAILURES:
            message = report.longreprtext[-_MESSAGE_CHARACTERS:]
            self._failures.append({"test": report.nodeid, "message": message})
        self._findings.keep(**self._counts, failures=self._failures)
        failed, passed, skipped = (self._counts[key] for key in ("failed", "passed", "skipped"))
        self._findings.row("tests", failed, f"{failed} of {failed + passed}, {skipped} skipped")


def marked_files(folder: Path) -> list[Path]:
    """Return the test files in a folder that use the marker, the most informative first."""
    found = [file for file in sorted(folder.rglob("test_*.py")) if MARKER in file.read_text()]
    order = {folder / name: place for place, name in enumerate(FIRST)}
    return sorted(found, key=lambda file: order.get(file, len(order)))


def run_tests(files: list[Path], findings: Findings, workers: int) -> int:
    """Run the marked tests of some files and return pytest's exit status.

    Args:
        files: in the order of the run.
        findings: file in which each test is recorded.
        workers: number of worker processes; 0 runs the tests in this process.
    """
    arguments = ["-m", "cuda and not slow", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    arguments += ["--continue-on-collection-errors"]
    # pyproject.toml sets an option of pytest-timeout, which may not be installed.
    arguments += ["-c", str(ROOT / "pyproject.toml"), "-W", "ignore::pytest.PytestConfigWarning"]
    if workers and importlib.util.find_spec("xdist") is not None:
        # One test at a time, so that the tests run in the order of the files.
        arguments += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1"]
    return pytest.main([*arguments, *map(str, files)], plugins=[Recorder(findings)])


def run(setting: Setting, findings: Findings) -> None:
    """Run all marked tests."""
    files = marked_files(ROOT / "tests")
    workers = setting.pick(min(16, os.cpu_count() or 1), 0)
    findings.keep(files=[str(file.relative_to(ROOT)) for file in files], workers=workers)
    status = run_tests(files, findings, workers)
    if status not in _RAN:
        raise RuntimeError(f"pytest ended with status {int(status)}; expected 0 or 1")
    if not setting.small and not findings.figures["passed"]:
        raise RuntimeError("no test ran; expected tests with the marker 'cuda'")
