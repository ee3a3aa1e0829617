"""Keys, digests and labels of many rows: read as zarr reads them, file by file, or refused by name."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.core.errors import CorruptStoreError
from pipeline.store.columns import read_section
from pipeline.store.frame import compressor
from pipeline.store.layout import Layout, Section
from tests.patience import HANGING_SECONDS

# Two extents, 65,536 rows per file: the first ends inside a file, the second begins two blocks later.
ROWS = ((0, 140_000), (147_456, 60_000))
TRAIN = Section(name="train", extents=ROWS, n_views=1)
LAYOUT = Layout(
    codec="x", arrays={}, n_classes=2, shard_rows=8192, sections={"train": TRAIN}, keeps_labels=True
)
FILES = 4


@pytest.fixture
def folder(tmp_path) -> Path:
    """Keys, digests and labels as zarr writes them; labels compress well."""
    group, generator = zarr.open_group(tmp_path, mode="a"), np.random.default_rng(0)
    train = group.create_group("train")
    for column in LAYOUT.index_arrays:
        array = train.create_array(
            column,
            shape=(TRAIN.n_rows,),
            dtype="uint64",
            chunks=(LAYOUT.index_chunk_rows,),
            compressors=[compressor()],
            config={"write_empty_chunks": True},
        )
        array[:] = generator.integers(0, 2 if column == "labels" else 2**64, TRAIN.n_rows, np.uint64)
    return tmp_path


def fetched(folder: Path, name: str, most_bytes: int) -> bytes | None:
    file = folder / name
    assert not file.exists() or file.stat().st_size <= most_bytes
    return file.read_bytes() if file.exists() else None


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("extents", [ROWS, ((0, 200_000),), ((0, 65_536),)])
def test_rows_are_those_that_zarr_reads(folder, extents, at_once):
    section = Section(name="train", extents=extents, n_views=1)
    # The arrays may be longer, as those of a growth that was killed are.
    columns = read_section("a", LAYOUT, section, lambda *asked: fetched(folder, *asked), at_once=at_once)
    for name, values in zip(LAYOUT.index_arrays, columns, strict=True):
        expected = zarr.open_array(folder / "train" / name, mode="r")[:][section.rows()]
        assert values.dtype == np.uint64
        assert np.array_equal(values, expected)


def test_files_are_read_side_by_side(folder):
    """Four files wait for each other; one after the other they would wait forever."""
    together = threading.Barrier(FILES)

    def fetch(name: str, most_bytes: int) -> bytes | None:
        if "/c/" in name:
            together.wait(timeout=HANGING_SECONDS)
        return fetched(folder, name, most_bytes)

    assert len(read_section("a", LAYOUT, TRAIN, fetch, at_once=FILES)) == 3


def cut(content: bytes) -> bytes:
    return content[:-1]


def flipped(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize("column", LAYOUT.index_arrays)
@pytest.mark.parametrize("damage", [cut, flipped])
def test_a_damaged_file_is_refused_by_the_name_of_its_array(folder, column, damage):
    file = folder / "train" / column / "c/2"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        CorruptStoreError, match=rf"^a: train/{column} cannot be read .*--repair \(without --repair"
    ):
        read_section("a", LAYOUT, TRAIN, lambda *asked: fetched(folder, *asked))


def test_a_missing_file_is_named(folder):
    (folder / "train/digests/c/3").unlink()
    with pytest.raises(CorruptStoreError, match=r"train/digests/c/3 is missing, an array of its keys"):
        read_section("a", LAYOUT, TRAIN, lambda *asked: fetched(folder, *asked))


def test_arrays_of_other_chunks_are_refused(folder):
    other = replace(LAYOUT, shard_rows=131_072)
    section = Section(name="train", extents=((0, 200_000),), n_views=1)
    with pytest.raises(CorruptStoreError, match="differs from the store's layout in chunk_grid"):
        read_section("a", other, section, lambda *asked: fetched(folder, *asked))
