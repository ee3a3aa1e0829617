"""What stopped a command, in one line with a remedy, for each kind of failure."""

from __future__ import annotations

import errno
import os
from urllib.error import URLError

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError
from stages.failures import explain

KNOWN = [
    (errno.ENOSPC, "free some space"),
    (errno.EDQUOT, "free some space"),
    (errno.EACCES, "make it writable"),
    (errno.EPERM, "make it writable"),
    (errno.EROFS, "make it writable"),
    (errno.EFBIG, "raise the limit"),
    (errno.EBUSY, "in use by a mount or another program"),
    (errno.ETXTBSY, "in use by another program"),
    (errno.EXDEV, "choose a folder inside"),
    (errno.EMFILE, "ulimit -n"),
    (errno.ENFILE, "ulimit -n"),
    (errno.EIO, "check the disk"),
    (errno.ESTALE, "run the same command again"),
    (errno.ELOOP, "check the symbolic links"),
    (errno.ENAMETOOLONG, "choose a shorter path"),
    (errno.EINVAL, "choose another name"),
    (errno.ENOENT, "check the path"),
    (errno.ENOTDIR, "check the path"),
    (errno.EISDIR, "check the path"),
    (errno.ENOLCK, "no locks"),
    (errno.ECONNREFUSED, "check the address"),
]


@pytest.mark.parametrize(("number", "remedy"), KNOWN, ids=[errno.errorcode[number] for number, _ in KNOWN])
def test_what_the_system_refuses_is_told_with_the_file_and_a_remedy(number, remedy):
    line = explain(OSError(number, os.strerror(number), "data/x.zarr"))
    assert line.startswith(f"data/x.zarr: {os.strerror(number)}; ")
    assert remedy in line


def test_both_files_of_a_rename_are_named():
    error = OSError(errno.EXDEV, os.strerror(errno.EXDEV), "a", None, "b")
    assert explain(error).startswith("a to b: Invalid cross-device link; ")


def test_a_full_disk_behind_stdout_has_no_name():
    assert explain(OSError(errno.ENOSPC, "No space left on device")).startswith("output: No space left")


def _too_much_of_torch() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def _too_much_of_numpy() -> None:
    np.empty(1 << 60, np.uint8)


@pytest.mark.parametrize("allocate", [_too_much_of_torch, _too_much_of_numpy])
def test_memory_that_is_not_there_is_told_with_what_to_lower(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    line = explain(caught.value)
    assert line.startswith("out of memory: ")
    assert "enforce fail" not in line
    assert line.endswith("; lower batch_size or --workers")


@pytest.mark.parametrize(
    "error",
    [
        *(MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("std::bad_alloc")),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_every_way_to_be_short_of_memory_has_the_same_remedy(error):
    assert explain(error).startswith("out of memory: ")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2 GiB.\nmore",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x",
    ],
)
def test_a_device_without_memory_may_leave_rendering_to_the_processor(message):
    line = explain(RuntimeError(message))
    assert line.startswith(message.splitlines()[0])
    assert line.endswith("Lower batch_size or --workers, or use --render cpu")


def test_threads_that_cannot_start_are_told():
    assert "too many threads" in explain(RuntimeError("can't start new thread"))
    assert "too many threads" in explain(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))


def test_a_network_that_is_not_there_is_told():
    assert "check the address and the network" in explain(URLError("Name or service not known"))


def test_an_error_of_the_project_speaks_for_itself():
    assert explain(ConfigError("x is 1; expected 2")) == "x is 1; expected 2"


@pytest.mark.parametrize("error", [ValueError("a\nb"), OSError("odd"), OSError(errno.EBADF, "bad")])
def test_anything_else_asks_for_the_traceback(error):
    assert "--debug for the traceback" in explain(error)
