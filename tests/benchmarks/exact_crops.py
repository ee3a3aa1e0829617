"""Check that the resize by matrix products equals the CPU's byte for byte, on a GPU too, and time it.

    python -m tests.benchmarks.exact_crops [--device cuda] [--crops 10000] [--out FILE.json]

Needs only torch and numpy. For each geometry, random crops of random images go through torch's uint8
antialiased kernel on the CPU and through `modalities/images/rendering/resample.py` on the device, with
products in

* float32, * TF32, * half precision with sums in float32 (all factors have 8 bits, so each is exact);

compared with torch.equal. Speed is measured on the device only, with images and boxes resident. Its bounds
are a large matrix product and a large copy on the same device in the same run: the share of the time that
these would need for the same multiplications and bytes. Exits with 1 if the precision in use differs in
any geometry.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.modalities.images.rendering import resample

# Height and width of the source, side of the result.
GEOMETRIES = (
    *((32, 32, 32), (32, 32, 24), (28, 28, 32), (40, 56, 32), (64, 64, 64), (96, 96, 64), (64, 48, 97)),
    *((128, 128, 112), (160, 200, 128), (256, 256, 224), (256, 256, 192), (256, 341, 224), (341, 256, 224)),
    *((288, 288, 224), (300, 400, 224), (375, 500, 224), (256, 256, 299), (300, 300, 299), (400, 400, 331)),
    (500, 500, 224),
)
BATCH = 250
SPEED = (256, 256, 224)
USED = ("float32",)


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return boxes (n, 4) of any size, some one pixel high or wide, some partly outside the image."""
    sides = torch.tensor([height, width])
    shape = (torch.rand(count, 2, generator=generator) * sides).long() + 1
    start = (torch.rand(count, 2, generator=generator) * (sides - shape + 1)).long()
    start[::10] -= 3
    return torch.cat([start, shape], 1)


def on_cpu(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Resize each crop with torch's kernel, black outside the image; threads share the crops."""
    count = min(len(images), os.cpu_count() or 1)
    parts = zip(*(values.chunk(count) for values in (images, boxes, flips)), strict=True)
    with ThreadPoolExecutor(count) as pool:
        return torch.cat(list(pool.map(lambda part: _one_by_one(*part, size), parts)))


def _one_by_one(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    out = []
    for image, (top, left, height, width), flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
        padded = torch.nn.functional.pad(image, (0, 0, 3, 3, 3, 3))
        cut = padded[top + 3 : top + 3 + height, left + 3 : left + 3 + width]
        resized = torch.nn.functional.interpolate(
            cut.permute(2, 0, 1)[None], (size, size), mode="bilinear", antialias=True
        )[0].permute(1, 2, 0)
        out.append(resized.flip(1) if flip else resized)
    return torch.stack(out)


@contextmanager
def products(kind: str) -> Iterator[None]:
    """Compute matrix products in a given precision."""
    before, tf32 = resample.multiply, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    if kind == "half":
        resample.multiply = _half
    try:
        yield
    finally:
        resample.multiply, torch.backends.cuda.matmul.allow_tf32 = before, tf32


def _half(pixels: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(pixels.half(), weights.half(), out_dtype=torch.float32)


def kinds(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that a device supports."""
    return ("float32", "tf32", "half") if device.type == "cuda" else ("float32",)


def compare(
    geometry: tuple[int, int, int], crops: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Return per kind the number of differing values, and the total number of values."""
    height, width, size = geometry
    generator = torch.Generator().manual_seed(height * width + size + (seed << 20))
    differing = dict.fromkeys(kinds(device), 0)
    shape = min(BATCH, crops), height, width, 3
    drawn = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for start in range(0, crops, BATCH):
        count = min(BATCH, crops - start)
        images = drawn[:count]  # images repeat, since drawing is slow; boxes are new each time
        boxes = random_boxes(count, height, width, generator)
        flips = torch.rand(count, generator=generator) < 0.5
        expected = on_cpu(images, boxes, flips, size).to(device)
        given = [values.to(device) for values in (images, boxes, flips)]
        for kind in differing:
            with products(kind):
                found = resample.crop_and_resize(*given, size)
            if not torch.equal(found, expected):
                differing[kind] += int((found != expected).sum())
    return {
        "source": [height, width],
        "size": size,
        "values": crops * size * size * 3,
        "differing": differing,
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of ten calls, after three warm-up calls."""
    times = []
    for _ in range(13):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))


def speed(device: torch.device, batch: int = BATCH) -> dict[str, Any]:
    """Return images per second of each kind, and the share of its bounds; use small batches for a trial."""
    height, width, size = SPEED
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator).to(
        device
    )
    boxes = random_boxes(batch, height, width, generator).to(device)
    flips = torch.zeros(batch, dtype=torch.bool, device=device)
    # Each of the two passes multiplies a high and a low byte.
    multiplications = batch * 3 * 2 * (height * width * size + size * size * height)
    traffic = batch * 3 * (height * width + size * size)
    side = 4096 if device.type == "cuda" else 1024
    square, block = (
        torch.rand(side, side, device=device),
        torch.empty(batch << 20, dtype=torch.uint8, device=device),
    )
    bytes_a_second = 2 * block.numel() / seconds_of(block.clone, device)
    result: dict[str, Any] = {
        "source": [height, width],
        "size": size,
        "gigabytes_a_second": bytes_a_second / 1e9,
    }
    for kind in kinds(device):
        with products(kind):
            factor = square.half() if kind == "half" else square
            rate = side**3 / seconds_of(lambda factor=factor: factor @ factor, device)
            seconds = seconds_of(lambda: resample.crop_and_resize(images, boxes, flips, size), device)
        result[kind] = {
            "images_a_second": batch / seconds,
            "share_of_product_bound": multiplications / rate / seconds,
            "share_of_memory_bound": traffic / bytes_a_second / seconds,
        }
    return result


def main() -> None:
    """Compare, time, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--crops", type=int, default=10_000, help="crops per geometry")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "speed": speed(device)}
    print(json.dumps(result, indent=1), flush=True)
    result["geometries"] = []
    for geometry in GEOMETRIES:
        result["geometries"].append(compare(geometry, arguments.crops, device))
        print(result["geometries"][-1], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [g for g in result["geometries"] if any(g["differing"][kind] for kind in USED)]
    sys.exit(f"{len(wrong)} geometries differ" if wrong else 0)


if __name__ == "__main__":
    main()
