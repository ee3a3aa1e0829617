"""Third-party loaders for the jobs of `loading_job.py`, each set up as in its own documentation.

    pip install --no-deps --target FOLDER airbench mosaicml-streaming spdl-core spdl-io ffcv
    and their dependencies: catalogue xxhash zstd python-snappy cramjam Brotli transformers tokenizers regex
    numba llvmlite opencv-python-headless assertpy fastargs terminaltables pytorch_pfn_extras

Put FOLDER on PYTHONPATH; missing packages are skipped. ffcv is built from source, which needs the headers
of OpenCV and TurboJPEG (Debian: libopencv-dev libturbojpeg0-dev pkg-config g++).

All loaders read the same uint8 pixels and return normalised float32 batches on the device. Differences:

* `DataLoader + v2` is the recipe of torchvision's documentation: array, ToImage, crop, flip, ToDtype,
  Normalize, image by image in the workers. `tuned` is the fastest setup that we found with the same two
  libraries: channels-last views of the arrays, for which v2's kernels are fastest; bytes, not floats, from
  the workers; normalisation per batch. SPDL and streaming also normalise per batch;
* timm crops and flips PIL images, which costs a copy; its PrefetchLoader normalises on the device;
* airbench prepares a whole epoch before its first batch, reflects at the edges instead of padding with
  black, and has shifts only. `airbench, float16` is the shipped version, `airbench` the same in float32;
* SPDL is an engine for stages; v2 does the work, in SPDL's threads or in a pool of processes;
* streaming reads its own MDS files (raw arrays) through a DataLoader;
* FFCV reads its own file (raw arrays) with compiled code. It resizes with OpenCV's INTER_AREA: for
  downscaling, a box half as wide as the triangle of the others' antialiased bilinear filter. It normalises
  by table on a CPU, and with torch after the copy on a GPU.
"""

from __future__ import annotations

from functools import partial

import torch

from tests.benchmarks.loading_job import Job
from tests.benchmarks.own_format_loaders import (
    airbench,
    ffcv,
    streaming,
    write_airbench,
    write_beton,
    write_mds,
)
from tests.benchmarks.turns import Contender
from tests.benchmarks.v2_loaders import data_loader, spdl, timm, tuned_data_loader

PACKAGES = ("torch", "torchvision", "timm", "airbench", "spdl-core", "mosaicml-streaming", "ffcv", "numba")


def peers(job: Job) -> list[Contender]:
    """Return the third-party loaders for a job."""
    found = [Contender(name="DataLoader + v2", open=data_loader)]
    found += [
        Contender(name=f"DataLoader + v2, {workers} workers", open=partial(data_loader, workers=workers))
        for workers in (0, 1, 2, 4)
        if workers != job.workers
    ]
    found += [
        Contender(name="DataLoader + v2, tuned", open=tuned_data_loader),
        Contender(name="timm", open=timm),
        Contender(name="SPDL + v2, threads", open=spdl),
        Contender(name="SPDL + v2, processes", open=partial(spdl, processes=True)),
        Contender(name="streaming + v2", open=streaming, convert=write_mds),
        Contender(name="FFCV", open=ffcv, convert=write_beton),
    ]
    if job.padding is not None:
        found.append(Contender(name="airbench", open=airbench, convert=write_airbench))
        if job.device.type == "cuda":
            shipped = partial(airbench, precision=torch.float16)
            found.append(Contender(name="airbench, float16", open=shipped, precision=torch.float16))
    return found
