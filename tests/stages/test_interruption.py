"""A dump that is killed and started again ends with the bytes of one that was not."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.core.errors import IncompleteStoreError
from pipeline.store.lock import WHOLE, writing
from pipeline.store.reader import LogitStore
from tests import patience
from tests.stages.conftest import run
from tests.stages.forks import ALIKE, Fork, Forks

Process = subprocess.Popen[Any] | Fork
STORE = Path("data/logits/main.zarr")
LOCKS = Path("data/logits/main.zarr.locks")
# A kill comes at most so long after a dump began to write; about as long as it takes.
LONGEST_SECONDS = 3.0
DUMP = [sys.executable, "-c", "from stages.cli import main; main()", "cache-logits", "main"]
# Slow enough to be caught in the middle: one image a forward pass.
SLOW = ["--set", "dumps.main.batch_size=1", "--set", "dumps.main.shard_rows=8"]
ENVIRONMENT = {**os.environ, **ALIKE}


def content(store: Path) -> dict[str, str]:
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


def start(forks: Forks) -> Fork:
    return forks.start(Path.cwd(), "cache-logits", "main", *SLOW)


def dump(forks: Forks, *options: str, folder: Path | None = None) -> None:
    status, said = forks.run(folder or Path.cwd(), "cache-logits", "main", *SLOW, *options)
    assert status == 0, said


def finished_shards() -> int:
    return len(list(STORE.glob("records/*.record")))


def stop_in_the_middle(forks: Forks, number: signal.Signals, after: int) -> int:
    """Start a dump, wait for some finished shards, stop it; return its exit status."""
    process = start(forks)
    patience.until(lambda: finished_shards() >= after, process)
    process.send_signal(number)
    process.finish()
    return process.returncode


@pytest.fixture(scope="module")
def reference(forks, template, tmp_path_factory) -> dict[str, str]:
    """The bytes of a dump that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "project"
    shutil.copytree(template, folder)
    dump(forks, folder=folder)
    return content(folder / STORE)


@pytest.fixture
def uninterrupted(reference, project) -> dict[str, str]:
    return reference


def test_a_second_run_gives_the_same_bytes(forks, uninterrupted):
    dump(forks)
    assert content(STORE) == uninterrupted


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopped_and_resumed_equals_uninterrupted(forks, uninterrupted, number, status):
    assert stop_in_the_middle(forks, number, after=3) == status
    assert 3 <= finished_shards() < len(uninterrupted)
    with pytest.raises(IncompleteStoreError, match="not complete"):
        LogitStore.open(STORE)
    dump(forks)
    assert content(STORE) == uninterrupted


def writes(process: Process) -> bool:
    """Wait until a process, or one that it started, holds a slice of the store; False if it ended."""
    return patience.until(lambda: any(LOCKS.glob("*.holder")), process)


def kill_with_all_it_started(process: Process) -> None:
    """SIGKILL: ranks are no longer asked to end when their launcher is gone."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    for each in (*ranks, process):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            each.send_signal(signal.SIGKILL)
    patience.until(lambda: False, process)
    psutil.wait_procs(ranks, timeout=patience.HANGING_SECONDS)


def kill_at_random(begin: Callable[[], Process], kills: int, seed: int, expected: dict[str, str]) -> int:
    """Kill a dump, with all that it started, at random moments, and start it again, so many times.

    A dump that ended before is compared, removed and begun anew. Returns how many ended.
    """
    generator, ended, killed = random.Random(seed), 0, 0
    while True:
        for stale in LOCKS.glob("*.holder"):
            stale.unlink()
        process = begin()
        if killed < kills and writes(process):
            time.sleep(generator.random() * LONGEST_SECONDS)
            if process.poll() is None:
                kill_with_all_it_started(process)
                killed += 1
                continue
        patience.until(lambda: False, process)
        assert process.returncode == 0
        assert content(STORE) == expected
        ended += 1
        if killed == kills:
            return ended
        shutil.rmtree(STORE)


def torchrun(ranks: int) -> subprocess.Popen[bytes]:
    """Start a dump on several ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen([*launcher, "--no-python", *DUMP, *SLOW], env=ENVIRONMENT)


def test_ranks_die_with_their_launcher_and_others_go_on_to_the_bytes_of_one_process(uninterrupted):
    launcher = torchrun(2)
    assert writes(launcher)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    assert len(ranks) == 2
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(ranks, timeout=patience.HANGING_SECONDS)[1] == []
    assert not (STORE / "manifest.json").exists()
    launcher = torchrun(2)
    patience.until(lambda: False, launcher)
    assert launcher.returncode == 0
    assert content(STORE) == uninterrupted


def test_killed_at_a_random_moment(forks, uninterrupted):
    assert kill_at_random(lambda: start(forks), 2, seed=1, expected=uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_a_hundred_times(forks, uninterrupted, ranks):
    begin = (lambda: start(forks)) if ranks == 1 else (lambda: torchrun(ranks))
    ended = kill_at_random(begin, 100, seed=10 + ranks, expected=uninterrupted)
    print(f"{ranks} ranks: killed 100 times at random moments, {ended} dumps ended, all with equal bytes")


def test_the_parts_of_a_job_array_make_the_bytes_of_one(forks, uninterrupted):
    for part in ("2/3", "0/3"):
        dump(forks, "--shards", part)
        with pytest.raises(IncompleteStoreError):
            LogitStore.open(STORE)
    dump(forks, "--shards", "1/3")
    dump(forks)
    assert content(STORE) == uninterrupted


@pytest.mark.parametrize("part", ["4/3", "0/0", "x", "1", "-1/2"])
def test_parts_that_are_none(project, part):
    assert run("cache-logits", "main", "--shards", part) == 2


def test_two_writers_at_once_end_with_one_good_store(forks, uninterrupted):
    writers = [start(forks) for _ in range(2)]
    errors = [writer.finish() for writer in writers]
    statuses = sorted(writer.returncode for writer in writers)
    # The second waits, and finds the store complete or says who writes it.
    assert statuses in ([0, 0], [0, 1])
    if statuses[1]:
        assert any("is locked by process" in error for error in errors), errors
    assert content(STORE) == uninterrupted


def test_a_complete_dump_runs_no_teacher(project, monkeypatch):
    assert run("cache-logits", "main") == 0
    before = content(STORE)
    monkeypatch.setattr("pipeline.models.teacher.Teacher.output", None)
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
    monkeypatch.setattr("pipeline.dump.run.WAIT_SECONDS", 0.2)
    with writing(STORE, WHOLE):
        assert run("cache-logits", "main") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"process {os.getpid()}" in message
    assert "wait for that process" in message
    assert run("cache-logits", "main") == 0


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of a quarter of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_is_done(project, small_disk, capsys):
    store = small_disk / "main.zarr"
    views = ["--set", "dumps.main.views.count=40", "--set", "dumps.main.shard_rows=16"]
    assert run("cache-logits", "main", "--out", store, *views) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; free some space" in message
    done = len(list(store.glob("records/*.record")))
    assert done > 3
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert run("cache-logits", "main", "--out", store, *views) == 0
    assert run("verify", store) == 0


def test_a_read_only_folder(project, small_disk, capsys):
    store = small_disk / "main.zarr"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert run("cache-logits", "main", "--out", store) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Read-only file system; make it writable, or choose a different folder" in message
    subprocess.run(["mount", "-o", "remount,rw,size=64m", small_disk], check=True)
    assert run("cache-logits", "main", "--out", store) == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    # Reading needs no lock and writes nothing.
    assert run("verify", store) == 0
    assert run("inspect", store) == 0
    assert run("cache-logits", "main", "--out", store) == 1
