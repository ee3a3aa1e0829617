"""A prepared dataset opens with what was prepared, and a broken folder is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.samples import Sample


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the prepared dataset that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "prepared")


def test_prepared_data_opens_with_what_was_prepared(tiny_data):
    assert tiny_data.classes == ("bar-0", "bar-1", "bar-2")
    assert tiny_data.train.form.unit == (1,)
    assert len(tiny_data.train) + len(tiny_data.validation) == 90
    assert len(tiny_data.test) == 30
    pixels = tiny_data.train.uniform[0] / 255
    np.testing.assert_allclose(tiny_data.statistics["mean"], [pixels.mean()], atol=1e-6)
    np.testing.assert_allclose(tiny_data.statistics["std"], [pixels.std()], atol=1e-6)


def test_prepared_pixels_cannot_be_written_to(tiny_data):
    with pytest.raises(ValueError, match="read-only"):
        tiny_data.train.array(0)[...] = 0


def test_a_folder_that_was_never_prepared_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset.json is missing.*run: pipeline prepare"):
        PreparedData.open(tmp_path)


def test_prepared_data_without_its_description_is_incomplete(copy):
    (copy / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        PreparedData.open(copy)


@pytest.mark.parametrize(
    "name", ["train.pixels", "validation.npz", "test.names", "test.pixels", "train.npz"]
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing; run: pipeline prepare"):
        PreparedData.open(copy)


def test_truncated_pixels_are_named_with_both_sizes(copy):
    path = copy / "train.pixels"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"train.pixels: {size - 1} bytes, expected {size}"):
        PreparedData.open(copy)


@pytest.mark.parametrize("name", ["train.npz", "dataset.json"])
@pytest.mark.parametrize("kept_bytes", [0, 20])
def test_a_truncated_index_or_description_is_named(copy, name, kept_bytes):
    path = copy / name
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=name):
        PreparedData.open(copy)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"schema": 2}'])
def test_a_description_of_another_kind_is_refused(copy, content):
    (copy / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"(dataset.json: |has schema 2).*; run: pipeline prepare"):
        PreparedData.open(copy)


@pytest.mark.parametrize("value", [None, "x", 7])
@pytest.mark.parametrize("name", ["classes", "channels", "mean", "std", "digest", "keep"])
def test_a_description_that_lacks_something_is_refused(copy, name, value):
    path = copy / "dataset.json"
    description = json.loads(path.read_text())
    description.update({name: value})
    if value is None:
        del description[name]
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=rf"{name}|digest"):
        PreparedData.open(copy)


def test_an_index_of_other_arrays_is_refused(copy):
    np.savez(copy / "train.npz", other=np.zeros(3))
    with pytest.raises(
        DataError, match=r"train.npz: content does not match dataset.json .*pipeline prepare"
    ):
        PreparedData.open(copy)


def test_swapped_splits_are_refused(copy):
    for suffix in ("npz", "pixels", "names"):
        test, validation = copy / f"test.{suffix}", copy / f"validation.{suffix}"
        test.rename(copy / "swap")
        validation.rename(test)
        (copy / "swap").rename(validation)
    with pytest.raises(DataError, match=r"not match dataset.json.*run: pipeline prepare"):
        PreparedData.open(copy)


def test_the_index_of_another_preparation_is_refused(copy, tmp_path, make_source, prepare_quietly):
    source = make_source()
    reversed_names = [Sample(sample.name + "x", sample.label, sample.load) for sample in source.train]
    other = prepare_quietly(
        ImageSource(classes=source.classes, channels=1, train=reversed_names, test=source.test),
        tmp_path / "other",
        validation=0,
    )
    for suffix in ("npz", "pixels", "names"):
        shutil.copy(other / f"train.{suffix}", copy / f"train.{suffix}")
    with pytest.raises(DataError, match=r"not match dataset.json"):
        PreparedData.open(copy)


@pytest.mark.parametrize("schema", [2, 4])
def test_another_schema_is_refused(copy, schema):
    path = copy / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(DataError, match=rf"schema {schema}, but this program reads 3"):
        PreparedData.open(copy)
