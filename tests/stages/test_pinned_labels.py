"""Labels do not change: small stores of every kind hold the arrays that they held when this was written.

The teacher's outputs are exact on any processor: integer weights on integer pixels, with sums below 2^24.
Digests are of decoded arrays, not of files, so that another Zstandard may come. Codec `features` fits its
tables with float sums, so its logits are compared in steps of 1/64.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from numpy.typing import NDArray

from pipeline.core.files import read_json
from pipeline.store.reader import LogitStore
from tests.stages.conftest import PARAMS, write_images, write_pictures
from tests.stages.forks import Forks

TEACHER = '''"""A network of integers: sums of 4x4 pixels, 40 mixtures of them, 4 classes."""

import torch
from torch import nn


class Exact(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(4, divisor_override=1)
        self.mix = nn.Linear(48, 40, bias=False)
        self.head = nn.Linear(40, 4)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randint(-3, 4, (40, 48), generator=generator))
            self.head.weight.copy_(torch.randint(-3, 4, (4, 40), generator=generator))
            self.head.bias.copy_(torch.randint(-9, 10, (4,), generator=generator))
            # A power of two: logits of a few units.
            self.head.weight.mul_(2.0**-14)

    def forward(self, images):
        sums = self.pool((images * 255).round()).flatten(1)
        return self.head(self.mix(sums).relu())


def exact():
    return Exact()
'''
VIEWS = {"count": 3, "seed": 3, "random_resized_crop": {}, "flip": "random"}
MIXED = {"count": 2, "seed": 4, "pad_crop": {"padding": 2}, "mixup": {"alpha": 0.5}, "rand_augment": {}}
DUMP = {"teacher": "exact", "batch_size": 16, "shard_rows": 40, "allow_poor_teacher": True, "views": VIEWS}
DUMPS = {
    "affine8": {},
    "affine4": {"codec": "affine4"},
    "fp16": {"codec": "fp16"},
    "topk": {"codec": "topk-2"},
    "features": {"codec": "features", "max_kl": 1e-3},
    "mixed": {"views": MIXED},
    "encoded": {},
    "grown": {},
}
EXACT = {
    "model": "own:exact",
    "weights": "pretrained",
    "preprocessing": {"size": 16, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
}
EXPECTED = json.loads(Path(__file__).with_name("pinned_labels.json").read_text())


def begin(forks: Forks, folder: Path, *, images: int = 100, **data: str) -> dict[str, Any]:
    """Prepare data, make the teacher by the real commands; return the parameters, with every dump."""
    params: dict[str, Any] = copy.deepcopy(PARAMS)
    params["teachers"] = {"exact": EXACT}
    params["dumps"] = {name: {**DUMP, **dump} for name, dump in DUMPS.items()}
    params["data"] |= data
    params["sweep"]["dumps"] = ["affine8"]
    folder.mkdir(exist_ok=True)
    write_images(folder, images)
    (folder / "own.py").write_text(TEACHER)
    run(forks, folder, params, "prepare", "train-teacher exact")
    return params


def run(forks: Forks, folder: Path, params: dict[str, Any], *commands: str) -> None:
    """Run commands with these parameters."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for command in commands:
        status, said = forks.run(folder, *command.split())
        assert status == 0, said


@pytest.fixture(scope="module")
def made(forks, tmp_path_factory) -> Path:
    """The folder of the stores that differ in nothing but the dump's parameters."""
    folder = tmp_path_factory.mktemp("pinned") / "project"
    params = begin(forks, folder)
    run(forks, folder, params, *(f"cache-logits {kind}" for kind in DUMPS if kind not in APART))
    return folder


def encoded(forks: Forks, folder: Path) -> None:
    """Dump from image files that are kept as they are."""
    write_pictures(folder)
    params = begin(forks, folder, source="folder:photos", watch="photos", keep="encoded")
    run(forks, folder, params, "cache-logits encoded")


def grown(forks: Forks, folder: Path) -> None:
    """Dump fewer images and views, then the rest."""
    params = begin(forks, folder, images=80)
    run(forks, folder, params, "cache-logits grown")
    write_images(folder, 100)
    params["dumps"]["grown"]["views"] = {**VIEWS, "count": 4}
    run(forks, folder, params, "prepare", "cache-logits grown")


APART = {"encoded": encoded, "grown": grown}


def digest(values: NDArray[Any]) -> str:
    shape = f"{values.dtype}{values.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(values).tobytes()).hexdigest()[:12]


def arrays_of(store: Path) -> Mapping[str, NDArray[Any]]:
    """Return every array of a store by its path, as any reader of Zarr sees it, and the decoded views."""
    folders = sorted(file.parent for file in store.rglob("zarr.json"))
    arrays = {
        str(f.relative_to(store)): f for f in folders if read_json(f / "zarr.json")["node_type"] == "array"
    }
    found = {name: np.asarray(zarr.open_array(folder, mode="r")[...]) for name, folder in arrays.items()}
    opened = LogitStore.open(store)
    views = {f"view {view}": opened.view(view).numpy() for view in range(opened.n_views)}
    return {**found, **views}


def pinned(kind: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    if kind == "features":
        kept = {name: values for name, values in arrays.items() if name.startswith(("view", "train/keys"))}
        kept |= {name: arrays[f"codec/{name}"] for name in ("weight", "bias")}
        arrays = {
            name: np.round(values * 64).astype(np.int64) if values.dtype.kind == "f" else values
            for name, values in kept.items()
        }
    return {name: digest(values) for name, values in sorted(arrays.items())}


@pytest.mark.parametrize("kind", DUMPS)
def test_labels_are_those_that_were_pinned(forks, request, tmp_path, kind):
    if kind in APART:
        APART[kind](forks, folder := tmp_path / "project")
    else:
        folder = request.getfixturevalue("made")
    assert pinned(kind, arrays_of(folder / f"data/logits/{kind}.zarr")) == EXPECTED.get(kind)
