"""Render checksums of a shard: which rows, what is kept of them, and its plain form."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from pipeline.store.records import CHECKSUMS_A_SHARD, RenderChecksums, checksum_rows, versions


def _images(count: int, size: int = 12, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, channels), np.uint8)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100, 4096, 160_000])
def test_rows_are_distinct_ascending_and_include_both_ends(count):
    rows = checksum_rows(count)
    assert len(rows) == min(count, CHECKSUMS_A_SHARD)
    assert (np.diff(rows) > 0).all()
    assert (rows[0], rows[-1]) == (0, count - 1)


def test_checksums_are_the_crc_of_each_samples_bytes():
    images = _images(3)
    assert RenderChecksums.of(images).crcs == tuple(zlib.crc32(image.tobytes()) for image in images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 224])
def test_kept_pixels_are_pixels_of_the_image(size, channels):
    images = _images(2, size, channels)
    kept = RenderChecksums.of(images).values.reshape(2, -1, channels)
    for image, pixels in zip(images, kept, strict=True):
        there = {tuple(pixel) for pixel in image.reshape(-1, channels).tolist()}
        assert {tuple(pixel) for pixel in pixels.tolist()} <= there


def test_one_changed_level_changes_the_crc():
    images = _images(4)
    other = images.copy()
    other[2, 5, 7, 1] ^= 1
    same = np.array(RenderChecksums.of(images).crcs) == np.array(RenderChecksums.of(other).crcs)
    assert same.tolist() == [True, True, False, True]


def test_the_plain_form_is_json_and_comes_back():
    checksums = RenderChecksums.of(_images(5))
    again = RenderChecksums.from_dict(json.loads(json.dumps(checksums.to_dict())))
    assert again.crcs == checksums.crcs
    assert np.array_equal(again.values, checksums.values)


def test_some_of_the_checksums_are_of_these_samples():
    images = _images(6)
    some, alone = RenderChecksums.of(images)[np.array([4, 1])], RenderChecksums.of(images[[4, 1]])
    assert some.crcs == alone.crcs
    assert np.array_equal(some.values, alone.values)


def test_versions_name_what_decodes_and_renders():
    found = versions("pillow 12.0")
    assert found["decoder"] == "pillow 12.0"
    assert set(found) == {"decoder", "torch", "torchvision"}
