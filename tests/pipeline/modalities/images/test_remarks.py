"""Odd images that are read nevertheless: told in a line, whatever source they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.modalities.images.sources import ImageOptions, open_source
from tests.pipeline.preparing import asking, prepare
from tests.pipeline.samples.test_resume import Stop

BITS_12 = 4095


@pytest.fixture
def x_rays(tmp_path) -> Path:
    """Pictures of 12 bits in files of 16, and one that uses all 16, in the layout of Country211."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("AD", "AE"):
            folder = tmp_path / "country211" / split / name
            folder.mkdir(parents=True)
            for row in range(2):
                pixels = generator.integers(0, BITS_12 + 1, (9, 9)).astype(np.uint16)
                Image.fromarray(pixels << 4 if row else pixels).save(folder / "x.jpg", format="png")
                (folder / "x.jpg").rename(folder / f"{row}.jpg")
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "torchvision"])
def test_pictures_of_12_bits_in_files_of_16_are_told(x_rays, tmp_path, capsys, kind):
    source = {"folder": f"folder:{x_rays}/country211", "torchvision": "torchvision:Country211"}[kind]
    description = prepare(
        open_source(source, ImageOptions(root=x_rays)),
        tmp_path / "prepared",
        asking(origin=source),
        state=tmp_path / "state",
        workers=2,
        progress=Stop(),
    )
    assert description["remarks"] == {"narrow_range": 4}
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("narrow range:"))
    assert "4 images of 16 bits use less than a quarter of their range" in line
    assert f"{x_rays}/country211/train/AD/0.jpg" in line
