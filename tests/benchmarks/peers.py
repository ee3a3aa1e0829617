"""Other people's loaders, each at the jobs of `loading_job.py`, set up as its own documentation has it.

    pip install --no-deps --target FOLDER airbench mosaicml-streaming spdl-core spdl-io ffcv
    and what these import: catalogue xxhash zstd python-snappy cramjam Brotli transformers tokenizers regex
    numba llvmlite opencv-python-headless assertpy fastargs terminaltables pytorch_pfn_extras

FOLDER goes on PYTHONPATH; what is missing is left out. ffcv is built from source, for which it needs
OpenCV's and TurboJPEG's headers (Debian: libopencv-dev libturbojpeg0-dev pkg-config g++).

All read the same uint8 pixels and give batches of float32, normalised, on the device. What differs:

* `DataLoader + v2` is the recipe of torchvision's documentation: array, ToImage, crop, flip, ToDtype,
  Normalize, image by image in the workers. `tuned` is the fastest that we found with the same two
  libraries: channels-last views of the arrays, for which v2's kernels are fastest; bytes, not floats, from
  the workers; normalisation a batch at a time. SPDL and streaming do the latter, too;
* timm crops and flips PIL images, which cost a copy; its PrefetchLoader normalises on the device;
* airbench prepares a whole epoch before its first batch, and reflects at the edges instead of padding with
  black; it has shifts alone. `airbench, float16` is how it is shipped, `airbench` the same in float32;
* SPDL is an engine for stages; v2 does the work, in its threads or in a pool of processes;
* streaming reads its own MDS files (raw arrays) through a DataLoader;
* FFCV reads its own file (raw arrays) with compiled code; it resizes by OpenCV's INTER_AREA, downwards a
  box half as wide as the triangle of the others' antialiased bilinear filter, and normalises on a CPU by
  table, on a GPU by torch after the copy.
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
    """Return whom to compare with in a job."""
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
