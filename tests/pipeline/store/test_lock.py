"""Locks lie beside a store, where somebody else may have put something: nothing of it is followed."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pipeline.core.errors import LockedError, StoreError
from pipeline.store.lock import WHOLE, Slice, gate, has_locks, writers, writing


@pytest.mark.parametrize(
    "text", ["0-of-0", "3-of-2", "x-of-y", "-1-of-2", "0-of-9999999", "٠-of-٢", "0-of-2\n"]
)
def test_what_is_no_slice_is_refused(text):
    with pytest.raises(ValueError, match="is not a slice"):
        Slice.parse(text)


def test_files_that_are_no_locks_are_passed_over(tmp_path):
    (tmp_path / "main.zarr.locks").mkdir()
    for name in ("0-of-0.lock", "x-of-y.lock", "5-of-2.lock"):
        (tmp_path / "main.zarr.locks" / name).touch()
    with gate(tmp_path / "main.zarr", 0), writing(tmp_path / "main.zarr", Slice(0, 2)):
        assert writers(tmp_path / "main.zarr") == ["0-of-2"]


@pytest.mark.parametrize("name", ["gate.lock", "gate.holder", "0-of-1.lock", "0-of-1.holder"])
def test_a_linked_lock_does_not_empty_what_it_leads_to(tmp_path, name):
    (tmp_path / "main.zarr.locks").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "main.zarr.locks" / name).symlink_to(victim)
    with (
        pytest.raises(StoreError, match="is a link or not a regular file"),
        gate(tmp_path / "main.zarr", 0),
    ):
        pass
    assert victim.read_text() == "mine"


def test_a_fifo_among_the_locks_is_refused(tmp_path):
    (tmp_path / "main.zarr.locks").mkdir()
    os.mkfifo(tmp_path / "main.zarr.locks" / "gate.holder")
    with (
        pytest.raises(StoreError, match="is a link or not a regular file"),
        gate(tmp_path / "main.zarr", 0),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_folder_of_locks_that_is_none_is_refused(tmp_path, kind):
    if kind == "link":
        (tmp_path / "mine").mkdir()
        (tmp_path / "main.zarr.locks").symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "main.zarr.locks").write_text("mine")
    with (
        pytest.raises(StoreError, match=r"main.zarr.locks: is a link or not a folder; expected the folder"),
        gate(tmp_path / "main.zarr", 0),
    ):
        pass


def test_a_name_that_comes_and_goes_is_no_foreign_file(tmp_path):
    (tmp_path / "main.zarr.locks").mkdir()
    holder, over = tmp_path / "main.zarr.locks" / "gate.holder", threading.Event()

    def take_and_release():
        while not over.is_set():
            holder.touch()
            holder.unlink()

    thread = threading.Thread(target=take_and_release)
    thread.start()
    try:
        assert all(has_locks(tmp_path / "main.zarr") for _ in range(2000))
    finally:
        over.set()
        thread.join()


def test_a_holder_is_told_in_one_line(tmp_path):
    with gate(tmp_path / "main.zarr", 0):
        (tmp_path / "main.zarr.locks" / "gate.holder").write_text("x\x1b" * 10_000)
        with pytest.raises(LockedError) as caught, gate(tmp_path / "main.zarr", 0):
            pass
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_writer_gets_the_gate_while_another_process_waits_for_it_to_finish(tmp_path):
    """Held by the one that waits, the gate would keep both waiting."""
    store, entered = tmp_path / "main.zarr", threading.Event()

    def newcomer() -> None:
        with gate(store, 60, free_of=Slice(1, 4), writers_seconds=60):
            entered.set()

    other = threading.Thread(target=newcomer)
    with writing(store, WHOLE):
        other.start()
        for _ in range(3):
            with gate(store, 60):  # as it publishes its manifest
                assert not entered.is_set()
            time.sleep(0.1)
    other.join()
    assert entered.is_set()


def test_a_writer_that_does_not_finish_is_named(tmp_path):
    store = tmp_path / "main.zarr"
    with (
        writing(store, Slice(0, 2)),
        pytest.raises(LockedError, match=r"process \d+ on .*\(slice 0-of-2\)"),
        gate(store, 1, free_of=Slice(1, 4), writers_seconds=0),
    ):
        pass
    with writing(store, Slice(0, 2)), gate(store, 1, free_of=Slice(2, 4)):
        assert writers(store) == ["0-of-2"]
