"""The cache of a machine: one process fetches, the oldest files make room."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.places import cache as module
from pipeline.places.cache import DIGEST_BYTES, Cache


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def content(cache: Cache, key: str, fetched: bytes) -> bytes:
    with cache.open(key, lambda: fetched) as file:
        return file.read()[:-DIGEST_BYTES]


def fetch_slowly(log: Path) -> bytes:
    with log.open("a") as file:
        file.write("fetched\n")
    time.sleep(0.3)
    return b"content"


def read_in_a_process(folder: Path, log: Path) -> None:
    with Cache(folder).open("key", lambda: fetch_slowly(log)) as file:
        assert file.read(7) == b"content"


def test_threads_and_processes_fetch_once(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=read_in_a_process, args=(folder, log)) for _ in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_in_a_process(folder, log), range(4)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "fetched\n"
    assert [path.name for path in folder.rglob("*.lock")] == []


def test_without_locks_every_thread_gets_the_bytes(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_in_a_process(tmp_path / "cache", tmp_path / "log"), range(4)))


def test_damage_is_fetched_again(tmp_path):
    assert content(Cache(tmp_path), "key", b"whole") == b"whole"
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert content(Cache(tmp_path), "key", b"whole") == b"whole"


def test_the_folder_may_be_removed_while_a_file_is_fetched(tmp_path):
    folder = tmp_path / "cache"

    def fetch() -> bytes:
        shutil.rmtree(folder)
        return b"content"

    with Cache(folder).open("key", fetch) as file:
        assert file.read(7) == b"content"


def test_the_files_that_were_unused_for_longest_make_room(tmp_path):
    cache = Cache(tmp_path, most_bytes=1320)
    for number in range(9):
        assert content(cache, f"key {number}", bytes([number]) * 100) == bytes([number]) * 100
        time.sleep(0.01)
    # Another process uses the first one.
    assert content(Cache(tmp_path, most_bytes=1320), "key 0", b"lost") == bytes(100)
    for number in range(9, 14):
        content(cache, f"key {number}", bytes([number]) * 100)
        time.sleep(0.01)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 1320
    assert content(cache, "key 0", b"lost") == bytes(100)
    assert content(cache, "key 1", b"again") == b"again"


def test_a_full_disk_makes_room(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    content(cache, "old", bytes(500))
    time.sleep(0.01)
    content(cache, "new", bytes(500))
    usage = module.shutil.disk_usage(tmp_path)
    # 10,000 bytes in all, of which 1,000 stay free: 432 are missing.
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(total=10_000, free=1_100))
    content(cache, "more", bytes(500))  # a cache of less than a gigabyte keeps its files
    assert content(cache, "old", b"lost") == bytes(500)
    monkeypatch.setattr(module, "_LEAST_BYTES", 0)
    time.sleep(0.01)
    content(cache, "last", bytes(500))
    assert content(cache, "last", b"lost") == content(cache, "more", b"lost") == bytes(500)
    assert content(cache, "new", b"again") == b"again"


def test_forgotten_bytes_are_fetched_again(tmp_path):
    cache = Cache(tmp_path)
    assert content(cache, "key", b"first") == b"first"
    cache.forget("key")
    cache.forget("key")
    assert content(cache, "key", b"second") == b"second"


def test_what_cannot_be_fetched_leaves_nothing(tmp_path):
    cache = Cache(tmp_path)

    def fail() -> bytes:
        raise ValueError("not there")

    with pytest.raises(ValueError, match="not there"):
        cache.open("key", fail)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
