"""The tests that need a CUDA device, in parallel, the most telling first; each is counted at its end."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.processes import ROOT

MARKER = "pytest.mark.cuda"
# Bytes of what is cached, then waiting, then pixels; all others come behind them.
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
# Interrupted: a file that could not be read, which counts as a failure.
_RAN = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)


class Recorder:
    """A pytest plugin that writes down every test's end; with pytest-xdist it sees those of all workers.

    Args:
        findings: where counts and failures go.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings, self._counts = findings, Counter[str](passed=0, failed=0, skipped=0)
        self._failures: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test, or that it could not be set up."""
        if report.when == "call" or report.outcome != "passed":
            self._counts[report.outcome] += 1
            self._tell(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that cannot be read."""
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
    """Return the test files of a folder that name the marker, the most telling first."""
    found = [file for file in sorted(folder.rglob("test_*.py")) if MARKER in file.read_text()]
    order = {folder / name: place for place, name in enumerate(FIRST)}
    return sorted(found, key=lambda file: order.get(file, len(order)))


def run_tests(files: list[Path], findings: Findings, workers: int) -> int:
    """Run the marked tests of some files and return pytest's exit status.

    Args:
        files: in the order in which they are run.
        findings: where each test is written down.
        workers: processes; 0 for none beside this one.
    """
    arguments = ["-m", "cuda and not slow", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    arguments += ["--continue-on-collection-errors"]
    # An option of pytest-timeout stands in pyproject.toml, and it may not be there.
    arguments += ["-c", str(ROOT / "pyproject.toml"), "-W", "ignore::pytest.PytestConfigWarning"]
    if workers and importlib.util.find_spec("xdist") is not None:
        # A test at a time, so that the order of the files is that of the run.
        arguments += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1"]
    return pytest.main([*arguments, *map(str, files)], plugins=[Recorder(findings)])


def run(setting: Setting, findings: Findings) -> None:
    """Run all of them."""
    files = marked_files(ROOT / "tests")
    workers = setting.pick(min(16, os.cpu_count() or 1), 0)
    findings.keep(files=[str(file.relative_to(ROOT)) for file in files], workers=workers)
    status = run_tests(files, findings, workers)
    if status not in _RAN:
        raise RuntimeError(f"pytest ended with status {int(status)}; expected 0 or 1")
    if not setting.small and not findings.figures["passed"]:
        raise RuntimeError("no test ran; expected those of the marker 'cuda'")
