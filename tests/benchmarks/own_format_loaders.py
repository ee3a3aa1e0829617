"""Third-party loaders with their own file formats: mosaicml/streaming, FFCV, airbench."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from tests.benchmarks.loading_job import Epochs, Job
from tests.benchmarks.v2_loaders import Bytes, batched, normalised


def _format_folder(job: Job, name: str) -> Path:
    return job.folder / f"{name}-{job.count}"


def write_mds(job: Job) -> None:
    """Write the images as raw arrays in MDS."""
    from streaming import MDSWriter

    columns = {"image": "ndarray:uint8", "label": "int"}
    with MDSWriter(out=str(_format_folder(job, "mds")), columns=columns) as writer:
        for row in range(min(job.count, job.rows_on_disk)):
            writer.write({"image": job.images.array(row), "label": int(job.images.labels[row])})


def streaming(job: Job) -> Epochs:
    """Load with mosaicml/streaming and a DataLoader."""
    from streaming import Stream, StreamingDataset

    # Its arrays are views of the bytes read, which are never written to.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    render = Bytes(job)

    class Streamed(StreamingDataset):
        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            sample = super().__getitem__(row)
            return render(sample["image"]), sample["label"]

    stream = Stream(local=str(_format_folder(job, "mds")), choose=job.count)
    dataset = Streamed(streams=[stream], shuffle=True, batch_size=job.batch_size)
    loader = batched(dataset, job, workers=job.workers)
    return lambda epoch: normalised(loader, job)


def write_beton(job: Job) -> None:
    """Write the images as raw arrays in FFCV's format."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = job.images
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    writer = DatasetWriter(str(_format_folder(job, "ffcv")), fields, num_workers=1)
    rows = range(min(job.count, job.rows_on_disk))
    writer.from_indexed_dataset([(images.array(row), int(images.labels[row])) for row in rows])


def ffcv(job: Job) -> Epochs:
    """Load with FFCV, set up as in its CIFAR-10 and ImageNet examples."""
    os.environ["NUMBA_NUM_THREADS"] = str(job.workers)
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        Convert,
        NormalizeImage,
        RandomHorizontalFlip,
        RandomTranslate,
        ToDevice,
        ToTensor,
        ToTorchImage,
    )

    mean, std = (255 * np.array(m) for m in job.moments)
    if job.padding is None:
        steps = [RandomResizedCropRGBImageDecoder((job.size, job.size)), RandomHorizontalFlip()]
    else:
        steps = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=job.padding)]
    if job.device.type == "cpu":
        steps += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    else:
        steps += [ToTensor(), ToDevice(job.device), ToTorchImage(), Convert(torch.float32)]
        steps += [v2.Normalize(mean.tolist(), std.tolist())]
    loader = Loader(
        str(_format_folder(job, "ffcv")),
        batch_size=job.batch_size,
        num_workers=job.workers,
        order=OrderOption.RANDOM,
        indices=np.arange(job.count) % job.rows_on_disk,
        pipelines={"image": steps},
    )
    return lambda epoch: iter(loader)


def write_airbench(job: Job) -> None:
    """Write the images in the format of airbench's loader."""
    folder = _format_folder(job, "airbench")
    folder.mkdir(exist_ok=True)
    images = job.images
    assert images.uniform is not None
    pixels, places = images.uniform
    content = {
        "images": torch.from_numpy(pixels[places]),
        "labels": torch.from_numpy(images.labels),
        "classes": [],
    }
    torch.save(content, folder / "train.pt")


def airbench(job: Job, *, precision: torch.dtype = torch.float32) -> Epochs:
    """Load with airbench's CifarLoader."""
    from airbench import utils

    utils.CIFAR_MEAN, utils.CIFAR_STD = (torch.tensor(m) for m in job.moments)
    loader = utils.CifarLoader(
        str(_format_folder(job, "airbench")),
        batch_size=job.batch_size,
        aug={"flip": True, "translate": job.padding},
        gpu=job.device,
    )
    loader.images = loader.images.to(precision)
    return lambda epoch: iter(loader)
