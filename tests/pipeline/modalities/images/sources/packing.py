"""Write the same pictures as class folders, tars, Parquet, a saved dataset and a CSV file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


class Picture(NamedTuple):
    """An encoded picture: its split, its class, its name without suffix, its suffix and its bytes."""

    split: str
    label: str
    name: str
    suffix: str
    content: bytes


def pictures(each: int = 6, splits: Sequence[str] = ("train", "test")) -> list[Picture]:
    """Return PNG and JPEG pictures of several sizes, in the order of a folder's source."""
    generator, found = np.random.default_rng(0), []
    for split in splits:
        for label in CLASSES:
            for number in range(each):
                suffix, form = (("png", "png"), ("jpg", "jpeg"))[number % 2]
                shape = (20 + number % 3, 24, 3)
                buffer = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(buffer, form)
                found.append(Picture(split, label, f"{label}/{number}", suffix, buffer.getvalue()))
    return found


def of_split(some: Iterable[Picture], split: str) -> list[Picture]:
    """Return the pictures of a split."""
    return [picture for picture in some if picture.split == split]


def write_folder(root: Path, some: Iterable[Picture]) -> Path:
    """Write ROOT/SPLIT/CLASS/NUMBER.SUFFIX."""
    for picture in some:
        path = root / picture.split / f"{picture.name}.{picture.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.content)
    return root


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, seconds: int = 0) -> Path:
    """Write members (name, bytes) in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), seconds
            tar.addfile(info, io.BytesIO(content))
    return path


def members(some: Iterable[Picture]) -> list[tuple[str, bytes]]:
    """Return an image, a .cls and a .json for each picture."""
    found = []
    for picture in some:
        found.append((f"{picture.name}.{picture.suffix}", picture.content))
        found.append((f"{picture.name}.cls", picture.label.encode()))
        found.append((f"{picture.name}.json", json.dumps({"label": picture.label}).encode()))
    return found


def write_tars(root: Path, some: Sequence[Picture], *, shards: int = 2) -> Path:
    """Write ROOT/SPLIT-000.tar, … of about equally many pictures."""
    for split in dict.fromkeys(picture.split for picture in some):
        chosen = of_split(some, split)
        for number, rows in enumerate(np.array_split(np.arange(len(chosen)), shards)):
            part = [chosen[row] for row in rows]
            write_tar(root / f"{split}-{number:03d}.tar", members(part))
    return root


def as_table(some: Sequence[Picture]) -> Any:
    """Return an Arrow table with id, image and label, as `datasets` has it, class names included."""
    import pyarrow

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "id": {"dtype": "string", "_type": "Value"},
    }
    table = pyarrow.table(
        {
            "image": [{"bytes": picture.content, "path": None} for picture in some],
            "label": [CLASSES.index(picture.label) for picture in some],
            "id": [picture.name for picture in some],
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, some: Sequence[Picture], *, rows: int = 5) -> Path:
    """Write a Parquet file with a few rows in each group."""
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(as_table(some), path, row_group_size=rows)
    return path


def write_saved(root: Path, some: Sequence[Picture]) -> Path:
    """Write what `DatasetDict.save_to_disk` writes, as far as it is read."""
    import pyarrow

    splits = list(dict.fromkeys(picture.split for picture in some))
    for split in splits:
        folder, name = root / split, "data-00000-of-00001.arrow"
        folder.mkdir(parents=True)
        table = as_table(of_split(some, split))
        with (
            pyarrow.OSFile(str(folder / name), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=5)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return root


def write_csv(path: Path, some: Iterable[Picture]) -> Path:
    """Write ROOT/SPLIT/… and a table of their paths, labels and splits."""
    lines = ["file_name,label,split"]
    for picture in some:
        lines.append(f"{picture.split}/{picture.name}.{picture.suffix},{picture.label},{picture.split}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
