"""A stage that DVC or torchrun started ends when that is killed, so that no orphan writes on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from stages.dvc import is_stage
from stages.ranks import under_torchrun

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, if it is DVC or torchrun (Linux only).

    A command typed by a person is left alone: with nohup it shall outlive its shell.
    """
    if sys.platform == "linux" and (is_stage() or under_torchrun()):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
