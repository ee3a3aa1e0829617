"""Waiting fails for hanging processes, and for no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.patience import call, finish, read_line, until


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_process_that_hangs_is_killed_and_told():
    process = start("import time; print('x', flush=True); time.sleep(10_000)")
    with pytest.raises(AssertionError, match="hangs: no work in 2 s"):
        finish(process, seconds=2)
    assert process.returncode == -9


def test_a_process_that_works_for_longer_is_waited_for():
    out, _ = finish(start("import time\nwhile time.process_time() < 3: pass\nprint('done')"), seconds=2)
    assert out == "done\n"


def test_what_a_child_works_counts_as_work():
    child = "import time\nwhile time.process_time() < 3: pass"
    process = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    finish(process, seconds=2)
    assert process.returncode == 0


def test_status_and_output_of_a_command_are_returned():
    done = call([sys.executable, "-c", "import sys; print(1); print(2, file=sys.stderr); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "1\n", "2\n")


def test_a_line_is_waited_for_until_the_process_ends_or_hangs():
    with start("print('x', flush=True)") as process:
        assert [read_line(process), read_line(process)] == ["x\n", ""]
    hanging = start("import time; time.sleep(10_000)")
    with pytest.raises(AssertionError, match="hangs: no work in 2 s"):
        read_line(hanging, seconds=2)


def test_waiting_for_something_ends_when_the_process_does():
    with start("pass") as process:
        assert not until(lambda: False, process)
    with start("input()") as process:
        assert until(lambda: True, process)
        process.kill()
