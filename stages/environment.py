"""Prepare the environment of a command for containers and unusual terminals."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from pipeline.core.user import name_user

# Turns of the OpenMP of GNU: some tens of microseconds.
SHORT_SPIN = "10000"


def fill_in() -> None:
    """Set a user name and a short spin, and make all text printable; call this before torch is imported."""
    name_user()
    # By default a thread of OpenMP spins for a millisecond where it waits for the others. Beside other
    # programs, or under a quota, it burns the time that they need. After this many turns it sleeps, which
    # a very small network notices on idle processors: tests/benchmarks/waiting_threads.py. Bytes stay.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SHORT_SPIN)
    # A shell's `2>&-` closes the stream, and Python then sets it to None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # File names may contain undecodable bytes, and a terminal may support few characters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
