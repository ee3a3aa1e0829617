"""Preparing: the same bytes each time and for any number of workers; never half a dataset."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.description import SPLITS
from pipeline.samples.samples import Sample
from tests.patience import HANGING_SECONDS
from tests.pipeline.preparing import asking, prepare


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_prepared_folder_holds_what_is_documented_and_nothing_else(tiny_folder):
    expected = {f"{split}.{kind}" for split in SPLITS for kind in ("pixels", "npz", "names")}
    assert set(_bytes(tiny_folder)) == expected | {"dataset.json"}


def test_preparing_again_in_place_leaves_the_same_bytes(tmp_path, make_source, prepare_quietly):
    first = _bytes(prepare_quietly(make_source(), tmp_path / "prepared"))
    assert _bytes(prepare_quietly(make_source(), tmp_path / "prepared")) == first


def test_four_workers_write_the_bytes_of_one(tmp_path, make_source, prepare_quietly):
    one = prepare_quietly(make_source(), tmp_path / "one", workers=1)
    four = prepare_quietly(make_source(), tmp_path / "four", workers=4)
    assert _bytes(one) == _bytes(four)


def test_decoding_out_of_order_keeps_the_order_of_samples(tmp_path, prepare_quietly):
    """The first image is decoded after the third, on another thread."""
    third_is_decoded = threading.Event()

    def image(value: int) -> np.ndarray:
        if value == 0:
            assert third_is_decoded.wait(HANGING_SECONDS)
        if value == 2:
            third_is_decoded.set()
        return np.full((2, 2, 1), value, np.uint8)

    samples = [Sample(f"train/{n}", n % 2, lambda n=n: image(n)) for n in range(6)]
    source = ImageSource(classes=("a", "b"), channels=1, train=samples, test=samples)
    folder = prepare_quietly(source, tmp_path / "x", validation=0, workers=4)
    assert PreparedData.open(folder).train.uniform[0][:, 0, 0, 0].tolist() == list(range(6))


def test_what_a_killed_preparation_left_is_swept(tmp_path, make_source, prepare_quietly):
    folder = prepare_quietly(make_source(), tmp_path / "prepared")
    expected = _bytes(folder)
    for name in (
        ".dataset.json.partial",
        ".train.npz.ab12cd34",
        ".test.names.partial",
        ".validation.pixels.partial",
        "damaged.txt",
    ):
        (folder / name).write_bytes(b"half")
    (folder / ".keep").write_bytes(b"a user's")
    prepare_quietly(make_source(), folder)
    assert _bytes(folder) == {**expected, ".keep": b"a user's"}


def test_the_description_says_what_was_prepared(tmp_path, make_source):
    seen = {}

    def progress(samples, step):
        seen[step] = len(samples)
        return iter(samples)

    folder, asked = tmp_path / "prepared", asking(origin="npz:x", validation=0.2, seed=0)
    returned = prepare(make_source(), folder, asked, state=tmp_path / "state", workers=1, progress=progress)
    assert returned == json.loads((folder / "dataset.json").read_text())
    assert returned["source"] == "npz:x"
    assert returned["classes"] == ["bar-0", "bar-1", "bar-2"]
    assert returned["samples"]["test"] == 30
    assert returned["samples"]["train"] + returned["samples"]["validation"] == 90
    assert seen == {f"decode {name}": count for name, count in returned["samples"].items()}
    assert (returned["keep"], returned["short_side"], returned["root"]) == ("pixels", None, None)


def test_the_seed_of_the_split_changes_the_digest(tmp_path, make_source, prepare_quietly):
    digests = {
        json.loads(
            (prepare_quietly(make_source(), tmp_path / f"{seed}", seed=seed) / "dataset.json").read_text()
        )["digest"]
        for seed in (0, 1)
    }
    assert len(digests) == 2


def test_moments_are_of_training_images_alone(tmp_path, make_source, prepare_quietly):
    source = make_source()
    white = Sample("test/white", 0, lambda: np.full((8, 8, 1), 255, np.uint8))
    brighter = ImageSource(
        classes=source.classes, channels=1, train=source.train, test=[*source.test, white]
    )
    plain = PreparedData.open(prepare_quietly(source, tmp_path / "a"))
    changed = PreparedData.open(prepare_quietly(brighter, tmp_path / "b"))
    assert plain.statistics == changed.statistics


def test_without_validation_the_split_is_empty(tmp_path, make_source, prepare_quietly):
    data = PreparedData.open(prepare_quietly(make_source(), tmp_path / "x", validation=0))
    assert (len(data.train), len(data.validation)) == (90, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failure_leaves_no_dataset_that_looks_complete(tmp_path, make_source, prepare_quietly, workers):
    def broken():
        raise DataError("train/broken.jpg: not a readable image")

    source = make_source()
    folder = prepare_quietly(source, tmp_path / "prepared")
    bad = [*source.train[:40], Sample("train/broken", 0, broken), *source.train[40:]]
    with pytest.raises(DataError, match=r"broken.jpg"):
        prepare_quietly(
            ImageSource(classes=source.classes, channels=1, train=bad, test=source.test),
            folder,
            workers=workers,
        )
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        PreparedData.open(folder)


def test_few_images_are_decoded_ahead(tmp_path, make_source, prepare_quietly):
    """A source larger than memory can be prepared: decoding waits for writing."""
    decoded, lead = [], []
    load = make_source().train[0].load

    def counted(row: int) -> np.ndarray:
        decoded.append(row)
        return load()

    samples = [Sample(f"train/{n}", 0, lambda n=n: counted(n)) for n in range(400)]

    def progress(samples, name):
        for written, sample in enumerate(samples):
            lead.append(len(decoded) - written)
            yield sample

    source = ImageSource(classes=("a", "b"), channels=1, train=samples, test=samples[:1])
    folder, state = tmp_path / "prepared", tmp_path / "state"
    prepare(source, folder, asking(origin=""), state=state, workers=2, progress=progress)
    assert max(lead[:400]) <= 2 * 8 + 1
