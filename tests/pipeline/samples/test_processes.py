"""Samples read in forked processes: the bytes of one thread, in order, resumable, within a bounded room."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.modalities.modality import Modality
from pipeline.modalities.table import find_modality
from pipeline.modalities.text import form
from pipeline.samples import drafting, processes
from pipeline.samples.prepare import Preparation, prepare
from pipeline.samples.processes import SharedRoom, in_processes, started
from pipeline.samples.samples import Sample
from tests.pipeline.modalities.audio.clips import noise, write
from tests.pipeline.modalities.images.test_damage import cut_out
from tests.pipeline.preparing import asking
from tests.pipeline.preparing import prepare as prepare_images

COUNT = 40


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Processes for few samples, in batches of three."""
    for module in (drafting, form):
        monkeypatch.setattr(module, "LEAST_SAMPLES", 2)
    monkeypatch.setattr(processes, "BATCH", 3)


def write_images(folder: Path) -> str:
    generator = np.random.default_rng(0)
    for row in range(COUNT):
        path = folder / "photos" / ("train" if row % 4 else "test") / f"class-{row % 3}" / f"{row:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*generator.integers(8, 30, 2), 3)
        Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(path)
    return f"folder:{folder / 'photos'}"


def write_texts(folder: Path) -> str:
    words = ["naïve", "café", "Всякий", "東京", "one", "two"]
    lines = [
        f"{words[row % 6]} {words[row % 5]} text {row},{'no' if row % 2 else 'yes'}" for row in range(COUNT)
    ]
    (folder / "table.csv").write_text("\n".join(["text,label", *lines]))
    return f"csv:{folder / 'table.csv'}"


def write_clips(folder: Path) -> str:
    for row in range(COUNT):
        split = "train" if row % 4 else "test"
        write(folder / "sounds" / split / f"class-{row % 2}" / f"{row:02}.wav", noise(400 + row, row))
    return f"folder:{folder / 'sounds'}"


WRITERS = {"images": write_images, "text": write_texts, "audio": write_clips}


def import_into(folder: Path, source: str, modality: Modality, **given: Any) -> dict[str, bytes]:
    """Prepare a source; return the bytes of the prepared files."""
    options = modality.options_type(**given.pop("options", {}))
    opened = modality.open_source(source, options)
    opened = replace(opened, **given.pop("source", {}))
    settings = {
        "state": folder.with_name(f"{folder.name}.state"),
        "workers": 1,
        "progress": lambda samples, _: iter(samples),
        **given,
    }
    asked = Preparation(origin=source, validation=0.2)
    prepare(opened, folder, asked, modality.intake(opened, folder, options), **settings)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", WRITERS)
def test_three_processes_write_the_bytes_of_one_thread(name, tmp_path, monkeypatch):
    source, modality = WRITERS[name](tmp_path), find_modality(name)
    pids = tmp_path / "pids"
    pids.mkdir()
    original = drafting.DraftBuilder._read

    def spy(*given: Any) -> Any:
        (pids / str(os.getpid())).touch()
        return original(*given)

    expected = import_into(tmp_path / "one", source, modality)
    monkeypatch.setattr(drafting.DraftBuilder, "_read", spy)
    assert import_into(tmp_path / "three", source, modality, workers=3) == expected
    found = {int(path.name) for path in pids.iterdir()}
    assert os.getpid() not in found
    assert len(found) >= 3


def test_files_that_stay_encoded_have_equal_bytes(tmp_path):
    source, modality = write_images(tmp_path), find_modality("images")
    options = {"keep": "encoded", "damaged": "refuse"}
    one, two = (
        import_into(tmp_path / name / "data", source, modality, workers=workers, options=options)
        for name, workers in (("one", 1), ("two", 2))
    )
    assert one == two


def test_damage_is_heard_in_the_process_that_decodes(tmp_path, capfd):
    source, modality = write_images(tmp_path), find_modality("images")
    path = sorted((tmp_path / "photos").rglob("*.jpg"))[7]
    small = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8))
    small.resize((80, 60), Image.Resampling.BICUBIC).save(path)
    cut_out(path)
    one = import_into(tmp_path / "one", source, modality)
    two = import_into(tmp_path / "two", source, modality, workers=2)
    assert one["damaged.txt"] == two["damaged.txt"] == f"{path}\n".encode()
    assert "Corrupt JPEG data" not in capfd.readouterr().err


def test_all_unreadable_samples_are_named_in_their_order(tmp_path):
    source, modality = write_images(tmp_path), find_modality("images")
    broken = sorted((tmp_path / "photos" / "train").rglob("*.jpg"))[3::9]
    for path in broken:
        path.write_bytes(b"no image")
    lists = []
    for name, workers in (("one", 1), ("two", 2)):
        with pytest.raises(DataError, match=f"{len(broken)} of {COUNT} images cannot be read"):
            import_into(tmp_path / name, source, modality, workers=workers)
        lists.append((tmp_path / f"{name}.state" / "unreadable.txt").read_text())
    assert lists[0] == lists[1]
    assert all(str(path) in lists[0] for path in broken)


class Stop(Exception):
    """An interruption."""


def test_an_interrupted_preparation_resumes_with_the_same_bytes(tmp_path, monkeypatch):
    source, modality = write_images(tmp_path), find_modality("images")
    expected = import_into(tmp_path / "whole", source, modality)

    def until(samples: Any, step: str) -> Any:
        for place, sample in enumerate(samples):
            if place == 11:
                raise Stop
            yield sample

    folder, read = tmp_path / "resumed", tmp_path / "read"
    with pytest.raises(Stop):
        import_into(folder, source, modality, workers=2, progress=until)
    assert (tmp_path / "resumed.state" / "train.rows").stat().st_size
    original = modality.intake

    def counting(*given: Any) -> Any:
        intake = original(*given)
        once = intake.read

        def spy(sample: Sample, *rest: Any) -> Any:
            with read.open("a") as file:
                file.write(f"{sample.name}\n")
            return once(sample, *rest)

        intake.read = spy
        return intake

    monkeypatch.setattr(type(modality), "intake", lambda self, *given: counting(*given))
    assert import_into(folder, source, modality, workers=2) == expected
    assert 0 < len(read.read_text().splitlines()) < COUNT


def test_sources_of_ones_own_are_read_by_threads(tmp_path, make_source, monkeypatch):
    """Samples may share an open file, whose position processes would share."""

    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "Reader", refuse)
    prepare_images(
        make_source(),
        tmp_path / "x",
        asking(origin="test", validation=0.2),
        state=tmp_path / "state",
        workers=2,
        progress=lambda samples, _: iter(samples),
    )


def test_a_process_that_dies_is_told(tmp_path):
    def die(send: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with started([die]) as readers, pytest.raises(DataError, match=r"status -9.*fewer --workers"):
        readers[0].receive()


def test_errors_of_a_process_arrive(tmp_path):
    def fail() -> None:
        raise FileNotFoundError(2, "no such file", "x.npz")

    class Local(Exception):
        """One that cannot be pickled."""

    def fail_locally() -> None:
        raise Local("lost")

    with pytest.raises(FileNotFoundError, match="no such file"):
        in_processes([fail])
    with pytest.raises(RuntimeError, match="Local: lost"):
        in_processes([fail_locally])


def test_results_come_in_the_order_of_the_functions():
    assert in_processes([partial(pow, 2, power) for power in range(5)]) == [1, 2, 4, 8, 16]


def test_no_process_is_left_behind(tmp_path):
    def wait(send: Any) -> None:
        send(os.getpid())
        time.sleep(3600)

    with started([wait, wait]) as readers:
        found = [reader.receive() for reader in readers]
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_only_the_batch_whose_turn_it_is_may_exceed_the_room():
    room = SharedRoom(100)

    def take(place: int, send: Any) -> None:
        room.enter(place, 80)
        send(room.taken())

    with started([partial(take, 1), partial(take, 0)]) as readers:
        taken = [readers[1].receive()]
        room.release(0, 0)
        # One of both has 80 of 100 now. The other, with batch 1, waits until these are given back.
        room.release(taken[0], 1)
        taken.append(readers[0].receive())
    assert taken == [80, 80]
    assert room._left.value == 20


def test_large_batches_are_sent_in_pieces(tmp_path, monkeypatch):
    source, modality = write_images(tmp_path), find_modality("images")
    expected = import_into(tmp_path / "one", source, modality)
    monkeypatch.setattr(processes, "_PIECE_BYTES", 1)
    assert import_into(tmp_path / "two", source, modality, workers=2) == expected
