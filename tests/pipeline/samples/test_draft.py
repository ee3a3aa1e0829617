"""An interrupted preparation goes on, and ends with the bytes of one that was not interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.modalities.images import decoding
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.draft import Draft
from tests.pipeline.preparing import asking, prepare

CLASSES, TRAIN, TEST = ("cat", "dog"), 12, 4


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def photos(tmp_path) -> Path:
    """24 training and 8 test images of several sizes, as PNG."""
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for row in range(count):
                shape = (*generator.integers(6, 30, 2), 3)
                pixels = generator.integers(0, 256, shape).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{row:02}.png")
    return root


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Which images were decoded, by name."""
    names: list[str] = []

    def spy(content, channels, path, decode=decoding.decode):
        names.append("/".join(Path(path).parts[-3:]))
        return decode(content, channels, path)

    monkeypatch.setattr(decoding, "decode", spy)
    return names


class Stop:
    """Interrupts after so many images."""

    def __init__(self, after: int | None = None, with_error: type[BaseException] = KeyboardInterrupt):
        self.left, self.error = after, with_error

    def __call__(self, samples, step) -> Iterator[object]:
        for sample in samples:
            if self.left is not None:
                if self.left == 0:
                    raise self.error
                self.left -= 1
            yield sample


def run(photos: Path, folder: Path, progress=None, **asked) -> Path:
    """Prepare photos into FOLDER/prepared with its state in FOLDER/state."""
    source = open_source(f"folder:{photos}", ImageOptions(root=photos))
    wanted = asking(**{"origin": "photos", "validation": 0.2, **asked})
    prepared = folder / "prepared"
    prepare(source, prepared, wanted, state=folder / "state", workers=2, progress=progress or Stop())
    return prepared


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def uninterrupted(photos, tmp_path) -> dict[str, bytes]:
    return content(run(photos, tmp_path / "reference"))


@pytest.mark.parametrize("after", [0, 1, 7, 18, 19, 23, 25, 31])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    photos, tmp_path, uninterrupted, decoded, capsys, after
):
    error = (KeyboardInterrupt, SystemExit, OSError)[after % 3]
    with pytest.raises(error):
        run(photos, tmp_path, Stop(after, error))
    with pytest.raises(DataError, match="no prepared dataset"):
        PreparedData.open(tmp_path / "prepared")
    # DVC does so before it runs a stage.
    shutil.rmtree(tmp_path / "prepared")
    decoded.clear()
    assert content(run(photos, tmp_path)) == uninterrupted
    assert len(decoded) == len(set(decoded)) == 2 * (TRAIN + TEST) - after
    assert ("resuming" in capsys.readouterr().err) == (after > 0)
    assert not (tmp_path / "state").exists()


def test_interrupted_again_and_again_it_ends_with_the_same_bytes(photos, tmp_path, uninterrupted, decoded):
    decoded.clear()
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path, Stop(5))
    assert content(run(photos, tmp_path)) == uninterrupted
    # What was decoded ahead of the interruption is lost, and no more.
    assert len(decoded) <= 2 * (TRAIN + TEST) + 6 * 2 * 4


def test_an_interruption_between_a_samples_pixels_and_its_record_loses_that_sample_alone(
    photos, tmp_path, uninterrupted, decoded, monkeypatch
):
    class Torn(Exception):
        pass

    def torn(self, entry, add=Draft.add):
        if len(self) == 9:
            self._arrays_file.write(entry.array.tobytes()[:100])
            self._rows_file.write(entry.row.tobytes())
            raise Torn
        add(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "add", torn)
        with pytest.raises(Torn):
            run(photos, tmp_path)
    decoded.clear()
    assert content(run(photos, tmp_path)) == uninterrupted
    assert len(decoded) == 2 * (TRAIN + TEST) - 9


def test_what_was_written_since_the_last_checkpoint_is_made_again(
    photos, tmp_path, uninterrupted, decoded, monkeypatch
):
    """As after a power failure: the checkpoint on the way out is not reached."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.samples.draft.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path, Stop(6))
    kept = shutil.copytree(tmp_path / "state", tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(5))
    shutil.copy(kept / "train.json", tmp_path / "state" / "train.json")
    decoded.clear()
    assert content(run(photos, tmp_path)) == uninterrupted
    assert len(decoded) == 2 * (TRAIN + TEST) - 6


def test_a_draft_that_lost_its_end_is_begun_anew(photos, tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(10))
    os.truncate(tmp_path / "state/train.arrays", 100)
    assert content(run(photos, tmp_path)) == uninterrupted


@pytest.mark.parametrize(
    "change",
    [
        {"short_side": 16},
        {"validation": 0.5},
        {"seed": 1},
        {"origin": "other"},
        {"keep": "encoded"},
        {"max_pixels": 9},
    ],
)
def test_another_plan_starts_anew(photos, tmp_path, capsys, change):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(10))
    changed = content(run(photos, tmp_path, **change))
    assert "different parameters or versions; starting over" in capsys.readouterr().err
    assert changed == content(run(photos, tmp_path / "reference", **change))


def test_a_raised_bound_keeps_what_is_done(photos, tmp_path, decoded, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(10), max_pixels=5000)
    decoded.clear()
    assert content(run(photos, tmp_path, max_pixels=5001)) == uninterrupted
    assert len(decoded) == 2 * (TRAIN + TEST) - 10


def test_a_replaced_file_is_noticed_and_the_others_are_kept(photos, tmp_path, decoded):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(17), validation=0)
    replaced = photos / "train/cat/04.png"
    Image.fromarray(np.full((40, 50, 3), 9, np.uint8)).save(replaced)
    decoded.clear()
    found = content(run(photos, tmp_path, validation=0))
    assert decoded.count("train/cat/04.png") == 1
    assert len(decoded) == 2 * (TRAIN + TEST) - 16
    assert found == content(run(photos, tmp_path / "reference", validation=0))


def test_a_touched_file_is_decoded_again(photos, tmp_path, decoded, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(30))
    os.utime(photos / "train/dog/05.png", ns=(1, 1))
    decoded.clear()
    assert content(run(photos, tmp_path)) == uninterrupted
    assert "train/dog/05.png" in decoded
    assert len(decoded) == 3


def test_files_that_come_and_go_between_runs_move_the_others(photos, tmp_path, decoded):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(20), validation=0)
    (photos / "train/cat/03.png").unlink()
    shutil.copy(photos / "train/dog/01.png", photos / "train/cat/00a.png")
    decoded.clear()
    found = content(run(photos, tmp_path, validation=0))
    assert len(decoded) == 1 + 2 * (TRAIN + TEST) - 20
    assert found == content(run(photos, tmp_path / "reference", validation=0))


def test_without_room_to_move_images_they_are_decoded_again(photos, tmp_path, decoded, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, Stop(20), validation=0)
    (photos / "train/cat/03.png").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    decoded.clear()
    found = content(run(photos, tmp_path, validation=0))
    assert len(decoded) == 2 * (TRAIN + TEST) - 1 - 3
    assert found == content(run(photos, tmp_path / "reference", validation=0))


def test_every_corrupt_file_is_named_and_the_others_are_kept(photos, tmp_path, decoded, uninterrupted):
    bad = ["train/cat/02.png", "train/cat/07.png", "train/dog/11.png", "test/cat/00.png", "test/dog/03.png"]
    whole = {name: (photos / name).read_bytes() for name in bad}
    for name in bad:
        (photos / name).write_bytes(b"no picture")
    listed = tmp_path / "state/unreadable.txt"
    with pytest.raises(DataError, match=rf"5 of 32 images cannot be read: .*{listed}; replace or") as info:
        run(photos, tmp_path)
    assert "\n" not in str(info.value)
    lines = listed.read_text().splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == sorted(str(photos / name) for name in bad)
    assert all("not a readable image (10 bytes" in line for line in lines)
    for name, image in whole.items():
        (photos / name).write_bytes(image)
    decoded.clear()
    assert content(run(photos, tmp_path)) == uninterrupted
    assert sorted(decoded) == sorted(bad)


def test_removed_corrupt_files_need_no_decoding_at_all(photos, tmp_path, decoded):
    bad = [photos / "train/cat/02.png", photos / "train/dog/07.png"]
    for path in bad:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="2 of 32 images cannot be read"):
        run(photos, tmp_path)
    for path in bad:
        path.unlink()
    decoded.clear()
    found = content(run(photos, tmp_path))
    assert decoded == []
    assert found == content(run(photos, tmp_path / "reference"))


def test_a_single_corrupt_file_is_named_with_what_is_wrong(photos, tmp_path):
    (photos / "train/dog/03.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"train/dog/03.png: not a readable image \(0 bytes.*replace or rem"
    ):
        run(photos, tmp_path)


def test_arrays_are_resumed_while_their_file_stays_the_same(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 1)).astype(np.uint8)
    arrays = {"train_images": images, "test_images": images}
    labels = {"train_labels": np.arange(40) % 2, "test_labels": np.arange(40) % 2}
    np.savez(tmp_path / "x.npz", **arrays, **labels)

    def prepared(folder, progress):
        source = open_source(f"npz:{tmp_path / 'x.npz'}", ImageOptions(root=tmp_path))
        state, asked = folder / "state", asking(origin="x")
        prepare(source, folder / "prepared", asked, state=state, workers=1, progress=progress)
        return content(folder / "prepared")

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, Stop(25))
    assert prepared(tmp_path, Stop()) == prepared(tmp_path / "reference", Stop())
    assert "25 of 40 train images are done" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, Stop(25))
    np.savez(tmp_path / "x.npz", **{name: a[::-1] for name, a in arrays.items()}, **labels)
    assert prepared(tmp_path, Stop()) == prepared(tmp_path / "reference", Stop())


def test_samples_without_a_file_are_made_again(tmp_path, make_source):
    folder, asked = tmp_path / "prepared", asking(origin="x")
    with pytest.raises(KeyboardInterrupt):
        prepare(make_source(), folder, asked, state=tmp_path / "state", workers=1, progress=Stop(30))
    seen = []
    prepare(
        make_source(),
        folder,
        asked,
        state=tmp_path / "state",
        workers=1,
        progress=lambda samples, _: iter(seen.append(len(samples)) or samples),
    )
    assert seen[0] == 90


def test_two_preparations_at_once_exclude_each_other(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.samples.draft.WAIT_SECONDS", 0.1)

    def meanwhile(samples, step):
        if step == "decode train":
            with pytest.raises(DataError, match=r"another `pipeline prepare` is running.*wait for it"):
                run(photos, tmp_path)
        return iter(samples)

    run(photos, tmp_path, meanwhile)


def test_on_another_file_system_what_is_finished_is_copied(photos, tmp_path, uninterrupted, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert content(run(photos, tmp_path)) == uninterrupted
    assert not (tmp_path / "state").exists()
