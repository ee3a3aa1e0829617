"""Compare rendered images per second with other libraries, in one run.

    pip install --no-deps kornia airbench                 (skipped if not installed)
    python -m tests.benchmarks.rendering [--device cpu] [--rounds 5] [--out FILE.json]

Three jobs, sources and results uint8 in memory unless stated otherwise:

* pad-crop: 32 pixels, shifts of 4, flips, in batches of 500. airbench's batch_crop and batch_flip_lr
  (float32, reflected edges), kornia's RandomCrop and RandomHorizontalFlip (float32);
* resized crop: 256 to 224, antialiased, flips, in batches of 64. kornia's RandomResizedCrop (float32,
  bilinear without antialiasing: a worse filter);
* RandAugment: the resized crop, then RandAugment of 2 operations, magnitude 9.

All libraries draw their own parameters, and drawing is timed. v2 works image by image, as in a Dataset,
from arrays through ToImage; `v2, channels last` gets views of the arrays, for which v2's kernels are
fastest. `device` is our device renderer, here on --device; on a CPU it is meant for tests, not for speed.
Rounds alternate; printed are medians, and the ratio of ours to each, round by round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from pipeline.loading.feed import Feed
from pipeline.modalities.images.augmentations import PadCrop, RandAugment, RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.packed import PackedSplit
from stages.runtime import keep_freed_memory
from tests.benchmarks.datasets import in_memory
from tests.benchmarks.environment import environment

Work = Callable[[], object]
OURS = "ours"


def packed(count: int, side: int) -> PackedSplit:
    """Return smooth images with some noise, so that no operation is unusually fast."""
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 200, side)[:, None, None] + generator.uniform(0, 40, (count, 1, 1, 3))
    pixels = (slope + generator.integers(0, 16, (count, side, side, 3))).astype(np.uint8)
    return in_memory(pixels, np.zeros(count, np.int64))


def rendered(images: PackedSplit, spec: ViewSpec, size: int, batch: int, **options: Any) -> Work:
    """Return a function that renders one view of all images, a new view per call."""
    preprocessing = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    feed = Feed(images, spec, preprocessing, **options)
    views = itertools.count()

    def work() -> None:
        view = next(views)
        for start in range(0, len(images), batch):
            feed.pixels(view, np.arange(start, min(start + batch, len(images))))

    return work


def one_by_one(images: PackedSplit, *transforms: v2.Transform) -> dict[str, Work]:
    """Return functions that pass each image through v2's transforms, as a Dataset would."""
    arrays = [images.array(row) for row in range(len(images))]
    views = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]

    def through(inputs: list[Any], transform: v2.Transform) -> Work:
        def work() -> None:
            for image in inputs:
                transform(image)

        return work

    return {
        "v2": through(arrays, v2.Compose([v2.ToImage(), *transforms])),
        "v2, channels last": through(views, v2.Compose(list(transforms))),
    }


def in_batches(
    images: PackedSplit, transform: Callable[[torch.Tensor], object], batch: int, device: Any
) -> Work:
    """Return a function that transforms float32 batches (B, C, H, W) on the device."""
    pixels, _ = images.uniform or (np.zeros(0), None)
    whole = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(255).contiguous().to(device)

    def work() -> None:
        for part in whole.split(batch):
            transform(part)

    return work


def airbench(padding: int) -> Callable[[torch.Tensor], object] | None:
    """Return airbench's crop and flip, or None if it is not installed."""
    try:
        from airbench.utils import batch_crop, batch_flip_lr
    except ImportError:
        return None

    def transform(images: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(images, (padding,) * 4, "reflect")
        return batch_flip_lr(batch_crop(padded, images.shape[3]))

    return transform


def kornia(*names: tuple[str, dict[str, Any]]) -> Callable[[torch.Tensor], object] | None:
    """Return kornia's augmentations in sequence, or None if it is not installed."""
    try:
        from kornia import augmentation
    except ImportError:
        return None
    steps = [getattr(augmentation, name)(**options) for name, options in names]

    def transform(images: torch.Tensor) -> torch.Tensor:
        for step in steps:
            images = step(images)
        return images

    return transform


def jobs(device: torch.device) -> Iterator[tuple[str, int, dict[str, Work]]]:
    """Yield each job's name, number of images, and contenders."""
    ours: dict[str, Any] = {"device": torch.device("cpu"), "on_device": False}
    there: dict[str, Any] = {"device": device, "on_device": True}
    flip = ("RandomHorizontalFlip", {"p": 0.5})
    small, large = packed(5000, 32), packed(192, 256)
    spec = ViewSpec(seed=1, pad_crop=PadCrop(padding=4), flip="random")
    batched = {
        "airbench": airbench(4),
        "kornia": kornia(("RandomCrop", {"size": (32, 32), "padding": 4}), flip),
    }
    yield (
        "pad-crop",
        len(small),
        {
            OURS: rendered(small, spec, 32, 500, **ours),
            "device": rendered(small, spec, 32, 500, **there),
            **one_by_one(small, v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()),
            **{name: in_batches(small, t, 500, device) for name, t in batched.items() if t is not None},
        },
    )
    crop = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    spec = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(), flip="random")
    theirs = kornia(("RandomResizedCrop", {"size": (224, 224)}), flip)
    yield (
        "resized crop",
        len(large),
        {
            OURS: rendered(large, spec, 224, 64, **ours),
            "device": rendered(large, spec, 224, 64, **there),
            **one_by_one(large, *crop),
            **({} if theirs is None else {"kornia": in_batches(large, theirs, 64, device)}),
        },
    )
    spec = ViewSpec(
        seed=1, random_resized_crop=RandomResizedCrop(), flip="random", rand_augment=RandAugment()
    )
    bilinear = v2.InterpolationMode.BILINEAR
    yield (
        "RandAugment",
        len(large),
        {
            OURS: rendered(large, spec, 224, 64, **ours),
            **one_by_one(large, *crop, v2.RandAugment(interpolation=bilinear)),
        },
    )


def measure(count: int, work: dict[str, Work], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return images per second, and the ratio of ours to each."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for name in work:
        work[name]()
    for _ in range(rounds):
        for name, act in work.items():
            start = time.perf_counter()
            act()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates[name].append(count / (time.perf_counter() - start))
    return {
        name: {
            "images_a_second": round(statistics.median(values)),
            "ours_over_it": round(
                statistics.median(a / b for a, b in zip(rates[OURS], values, strict=True)), 2
            ),
        }
        for name, values in rates.items()
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device(arguments.device)
    result: dict[str, Any] = {"environment": environment()}
    for name, count, work in jobs(device):
        result[name] = measure(count, work, arguments.rounds, device)
        print(name, json.dumps(result[name], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
