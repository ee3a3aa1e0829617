"""Shared fixtures: small images in memory, a small prepared dataset, one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.core.hashing import content_digest, sample_key
from pipeline.evaluation import assessment
from pipeline.modalities.images.form import ImageSource, image_form
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.packed import PackedSplit
from pipeline.samples.samples import Names, Sample
from tests.benchmarks import commands
from tests.pipeline.preparing import asking, prepare
from tests.stages import dvc_projects
from tests.stages.preloaded import Preloaded

Split = Sequence[NDArray[np.uint8]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a CUDA device if there is none."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Use one thread: small tensors are slower on many, and the machine may be busy with other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _short_latencies() -> Iterator[None]:
    """Time a network's forward pass a few times, not for a second: nothing here looks at the figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "_MOST", assessment._FEWEST)
        yield


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let programs of tests and benchmarks be forks of a process that has imported them."""
    with Preloaded(tmp_path_factory.mktemp("programs")) as preloaded, pytest.MonkeyPatch.context() as patch:
        path = f"{preloaded.programs}:{dvc_projects.ENVIRONMENT['PATH']}"
        patch.setitem(dvc_projects.ENVIRONMENT, "PATH", path)
        patch.setattr(commands, "PIPELINE", [str(preloaded.programs / "pipeline")])
        yield


@pytest.fixture(scope="session")
def random_image() -> Callable[..., NDArray[np.uint8]]:
    """Return a function from (height, width, channels=3, seed=0) to a noise image (H, W, C) uint8."""

    def make(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
        shape = (height, width, channels)
        return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def pack_images() -> Callable[..., PackedSplit]:
    """Return a function from images (and labels, names) to a `PackedSplit` in memory."""

    def pack(
        images: Sequence[np.ndarray],
        labels: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> PackedSplit:
        labels = [0] * len(images) if labels is None else labels
        names = [f"train/{row}" for row in range(len(images))] if names is None else names
        sizes = [image.size for image in images]
        return PackedSplit(
            values=np.concatenate([image.ravel() for image in images]),
            form=image_form(images[0].shape[2]),
            offsets=np.cumsum([0, *sizes[:-1]]).astype(np.int64),
            shapes=np.array([image.shape[:2] for image in images], np.int32),
            labels=np.array(labels, np.int64),
            keys=np.array([sample_key(name) for name in names], np.uint64),
            digests=np.array(
                [content_digest(i, n) for i, n in zip(images, labels, strict=True)], np.uint64
            ),
            names=Names.of(names),
        )

    return pack


@pytest.fixture(scope="session")
def make_source() -> Callable[..., ImageSource]:
    """Return a function that makes a source of noisy bars: class c lights row c of a grey square image."""

    def make(train: int = 90, test: int = 30, classes: int = 3, size: int = 8) -> ImageSource:
        return ImageSource(
            classes=tuple(f"bar-{label}" for label in range(classes)),
            channels=1,
            train=_bars("train", train, classes, size),
            test=_bars("test", test, classes, size),
        )

    return make


def _bars(split: str, count: int, classes: int, size: int) -> list[Sample]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 100, (count, size, size, 1)).astype(np.uint8)
    samples = []
    for row, image in enumerate(images):
        image[row % classes * 2] += 120
        samples.append(Sample(f"{split}/{row}", row % classes, lambda image=image: image))
    return samples


@pytest.fixture(scope="session")
def prepare_quietly() -> Callable[..., Path]:
    """Return a function (source, folder, workers=1, and options) that prepares data."""

    def run(source: ImageSource, folder: Path, *, workers: int = 1, **asked: Any) -> Path:
        prepare(
            source,
            folder,
            asking(**{"origin": "test", "validation": 0.2, **asked}),
            state=folder.with_name(f"{folder.name}.state"),
            workers=workers,
            progress=lambda samples, _: iter(samples),
        )
        return folder

    return run


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_source: Callable[..., ImageSource],
    prepare_quietly: Callable[..., Path],
) -> Path:
    """A read-only prepared dataset on disk: 3 learnable classes of 8x8 grey images."""
    return prepare_quietly(make_source(), tmp_path_factory.mktemp("tiny") / "prepared")


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> PreparedData:
    """The dataset of `tiny_folder`, opened."""
    return PreparedData.open(tiny_folder)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a local S3 server, which environment variables also name."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    yield f"http://{host}:{port}"
    moto.stop()
    os.environ.clear()
    os.environ.update(before)
