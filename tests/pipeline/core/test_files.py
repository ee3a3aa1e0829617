"""Files that are whole or not there: their modes, and disks that refuse them."""

from __future__ import annotations

import errno
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.core import files
from pipeline.core.files import write_bytes, write_json, write_tensors


@pytest.fixture(params=[0o077, 0o002, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_and_replaced_files_have_the_modes_that_the_umask_leaves(tmp_path, umask):
    path = tmp_path / "x"
    for write in (
        lambda: write_bytes(path, b"1"),
        lambda: write_json(path, 2),
        lambda: write_tensors(path, torch.ones(1)),
    ):
        write()
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_of_tensors_has_the_bytes_of_torch(tmp_path):
    content = {"weight": torch.arange(1000.0), "epochs": [1, 2.5, "three"]}
    write_tensors(tmp_path / "x.pt", content)
    expected = io.BytesIO()
    torch.save(content, expected)
    assert (tmp_path / "x.pt").read_bytes() == expected.getvalue()


def test_the_next_writer_takes_over_what_a_killed_one_left(tmp_path):
    (tmp_path / ".x.partial").write_bytes(b"half of something longer")
    write_bytes(tmp_path / "x", b"whole")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"x": b"whole"}


def test_writers_of_one_file_go_one_after_the_other(tmp_path):
    def write(number: int) -> None:
        write_bytes(tmp_path / "x", bytes([number]) * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    assert len(set((tmp_path / "x").read_bytes())) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EACCES])
def test_without_locks_or_beside_another_users_leftover_a_file_has_a_name_of_its_own(
    tmp_path, monkeypatch, number
):
    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_open_alone", refuse)
    write_bytes(tmp_path / "x", b"1")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"x": b"1"}


def test_a_fifo_in_place_of_the_partial_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / ".x.partial")
    with pytest.raises(OSError, match="No such device or address"):
        write_bytes(tmp_path / "x", b"1")


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".x.partial").symlink_to("mine")
    with pytest.raises(OSError, match="symbolic links"):
        write_bytes(tmp_path / "x", b"1")
    assert (tmp_path / "mine").read_bytes() == b"mine"


class Disk(io.FileIO):
    """A file on a disk that takes so many bytes."""

    room = 0

    def write(self, content) -> int:
        if self.tell() + len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.mark.parametrize("room", [0, 10, 300, 1_500, 4_300, 4_500])
def test_tensors_on_a_full_disk_end_in_its_own_error_and_keep_the_old_file(tmp_path, monkeypatch, room):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr(Disk, "room", room)
    monkeypatch.setattr(files, "_open_alone", lambda path: Disk(path, "wb"))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(path, torch.ones(1000))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(AttributeError):
        write_tensors(tmp_path / "x.pt", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_bytes(tmp_path / "x", b"1")
    assert Path(caught.value.filename2 or caught.value.filename).name == "x"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
