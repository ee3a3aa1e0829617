"""A dump that is killed and started again ends with the bytes of one that was not."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import IncompleteStoreError
from pipeline.store.lock import writer_lock
from pipeline.store.reader import LogitStore
from tests.stages.conftest import run

STORE = Path("data/logits/main.zarr")
DUMP = [sys.executable, "-c", "from stages.cli import main; main()", "cache-logits", "main"]
# Slow enough to be caught in the middle: one image a forward pass.
SLOW = ["--set", "dumps.main.batch_size=1", "--set", "dumps.main.shard_rows=8"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def content(store: Path) -> dict[str, str]:
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([*DUMP, *SLOW], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def finished_shards() -> int:
    return len(list(STORE.glob("records/*.json")))


def stop_in_the_middle(number: signal.Signals, after: int, delay: float = 0.0) -> int:
    """Start a dump, wait for some finished shards, stop it; return its exit status."""
    process = start()
    deadline = time.monotonic() + 120
    while finished_shards() < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.fixture
def uninterrupted(project) -> dict[str, str]:
    subprocess.run([*DUMP, *SLOW], env=ENVIRONMENT, check=True, capture_output=True)
    result = content(STORE)
    STORE.rename("data/logits/reference.zarr")
    return result


def test_a_second_run_gives_the_same_bytes(uninterrupted):
    subprocess.run([*DUMP, *SLOW], env=ENVIRONMENT, check=True, capture_output=True)
    assert content(STORE) == uninterrupted


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, number, status):
    assert stop_in_the_middle(number, after=3) == status
    assert 3 <= finished_shards() < len(uninterrupted)
    with pytest.raises(IncompleteStoreError, match="not complete"):
        LogitStore.open(STORE)
    subprocess.run([*DUMP, *SLOW], env=ENVIRONMENT, check=True, capture_output=True)
    assert content(STORE) == uninterrupted


@pytest.mark.slow
def test_killed_many_times(uninterrupted):
    generator = random.Random(0)
    for kill in range(50):
        done = finished_shards()
        delay = generator.random() * 0.3
        if stop_in_the_middle(signal.SIGKILL, after=min(done + 1, 30), delay=delay) == 0:
            assert content(STORE) == uninterrupted, kill
            __import__("shutil").rmtree(STORE)
    subprocess.run([*DUMP, *SLOW], env=ENVIRONMENT, check=True, capture_output=True)
    assert content(STORE) == uninterrupted


def test_a_complete_dump_runs_no_teacher(project, monkeypatch):
    assert run("cache-logits", "main") == 0
    before = content(STORE)
    monkeypatch.setattr("pipeline.models.teacher.Teacher.logits", None)
    assert run("cache-logits", "main") == 0
    assert content(STORE) == before


def test_more_views_leave_finished_shards_alone(project, edit):
    assert run("cache-logits", "main") == 0
    before = {f: f.stat().st_mtime_ns for f in STORE.glob("train/codes/c/*/*/*")}
    edit({"dumps": {"main": {"views": {"count": 5}}}})
    assert run("cache-logits", "main") == 0
    assert LogitStore.open(STORE).n_views == 5
    assert {f: f.stat().st_mtime_ns for f in before} == before
    grown = content(STORE)
    STORE.rename("data/logits/grown.zarr")
    assert run("cache-logits", "main") == 0
    assert content(STORE) == grown


def test_a_second_writer_waits_then_names_the_first(project, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.store.lock.WAIT_SECONDS", 0.2)
    with writer_lock(STORE):
        assert run("cache-logits", "main") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"process {os.getpid()}" in message
    assert "one writer at a time" in message
    assert run("cache-logits", "main") == 0


def test_a_full_disk_keeps_what_is_done(project, monkeypatch, capsys):
    import errno

    from pipeline.store import writer

    written = []

    def full(path: Path) -> str:
        written.append(path)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path)

    original = writer.file_digest
    monkeypatch.setattr(writer, "file_digest", full)
    assert run("cache-logits", "main") == 1
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert finished_shards() == 3
    monkeypatch.setattr(writer, "file_digest", original)
    assert run("cache-logits", "main") == 0
