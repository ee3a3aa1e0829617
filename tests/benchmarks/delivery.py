"""Measure random batches of encoded rows per second, and the cost of opening stores of growing size.

    python -m tests.benchmarks.delivery [--device cpu] [--out FILE.json]

The store has 65,536 samples of about 600 bytes. A view is read whole, verified and held in memory; a batch
of 256 random rows is then a gather. It alternates, on one thread each, with a gather from a memory-mapped
file of the same bytes (in the page cache), one file per sample (torch.load, as in torchdistill), and zarr's
fancy indexing of the same store. Opening is timed for 10 thousand and for a million samples. Decoding, with
each codec for 1,000 classes, is compared with a training step of a ResNet-18 at 224 pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from pipeline.codecs import TeacherOutput, codec_fingerprint, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_state
from pipeline.codecs.spec import CodecSpec
from pipeline.loading.targets import EncodedView
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.architecture import Architecture, build
from pipeline.store.frame import build_frame
from pipeline.store.header import Fingerprint, Header
from pipeline.store.index import SampleIndex
from pipeline.store.layout import Layout, Section
from pipeline.store.reader import LogitStore
from pipeline.store.records import RenderChecksums, checksum_rows, versions
from pipeline.store.writer import StoreWriter
from pipeline.tasks.classes import CLASSES as TASK
from tests.benchmarks.environment import environment

CLASSES, SAMPLES, BATCH, ROUNDS = 600, 65_536, 256, 7
FILES, STEP_BATCH = 8192, 64
CODEC = find_codec("affine8", CLASSES)


def make_store(path: Path, samples: int, *, random: bool) -> LogitStore:
    """Write a store of one view, of random bytes or of zeros."""
    header = Header(
        layout=Layout(
            codec=CODEC.name,
            arrays=CODEC.arrays,
            n_classes=CLASSES,
            shard_rows=SAMPLES,
            sections={"train": Section(name="train", extents=((0, samples),), n_views=1)},
        ),
        fingerprint=Fingerprint(dataset="", teacher="", views="", codec=codec_fingerprint(CODEC)),
        teacher={
            "name": "none",
            "precision": "fp32",
            "architecture": {"name": "none"},
            "preprocessing": {"size": 8, "mean": [0.5], "std": [0.5]},
            "classes": [str(number) for number in range(CLASSES)],
        },
        views=ViewSpec(seed=0).canonical(),
        codec_spec=CodecSpec(name=CODEC.name),
        batch_size=BATCH,
        versions=versions("none"),
    )
    keys = np.random.default_rng(0).integers(0, 2**64, samples, np.uint64)
    build_frame(path, header, index={"train": SampleIndex(keys, keys)}, state={})
    writer, generator = StoreWriter(path, header), np.random.default_rng(1)
    for shard in header.layout.shards():
        rows = header.layout.n_rows(shard)
        codes = generator.integers(0, 256 if random else 1, (rows, CLASSES), np.uint8)
        arrays = {"codes": codes, "scale": np.ones(rows, np.float16)}
        checksums = RenderChecksums.of(np.zeros((len(checksum_rows(rows)), 8, 8, 3), np.uint8))
        writer.write(
            shard,
            arrays,
            fidelity=Fidelity.total(TASK.measures, []),
            labelled=0,
            correct=0,
            checksums=checksums,
        )
    writer.tidy()
    writer.complete_with(writer.manifest({}))
    return LogitStore.open(path)


def gather(store: LogitStore) -> Callable[[NDArray[np.int64]], Any]:
    """Return this library's way: hold a view in memory and gather a batch by index."""
    arrays = {name: torch.from_numpy(array) for name, array in store.encoded_view(0).items()}
    view = EncodedView(store.codec, arrays)
    return lambda rows: view.gather(torch.from_numpy(rows))


def memory_mapped(store: LogitStore, folder: Path) -> Callable[[NDArray[np.int64]], Any]:
    """Return a gather from one file of the same rows."""
    view = store.encoded_view(0)
    rows = np.concatenate([view["codes"], view["scale"][:, None].view(np.uint8)], 1)
    rows.tofile(folder / "rows.bin")
    mapped = np.memmap(folder / "rows.bin", np.uint8, "r", shape=rows.shape)
    return lambda rows: mapped[rows]


def file_a_sample(store: LogitStore, folder: Path) -> Callable[[NDArray[np.int64]], Any]:
    """Return the way of one file per sample."""
    codes = torch.from_numpy(store.encoded_view(0)["codes"][:FILES])
    (folder / "samples").mkdir()
    for row, values in enumerate(codes):
        torch.save(values.clone(), folder / "samples" / f"{row}.pt")
    return lambda rows: torch.stack([torch.load(folder / "samples" / f"{r}.pt") for r in rows % FILES])


def fancy_indexing(path: Path) -> Callable[[NDArray[np.int64]], Any]:
    """Return zarr's own indexing of the store."""
    codes = zarr.open_array(path / "train" / "codes", mode="r")
    return lambda rows: codes.oindex[0, np.sort(rows)]


def samples_per_second(ways: Mapping[str, Callable[[NDArray[np.int64]], Any]]) -> dict[str, list[float]]:
    """Time each way in turn, round after round."""
    generator, speeds = np.random.default_rng(2), {name: [] for name in ways}
    batches = dict.fromkeys(ways, 400) | {"file a sample": 2, "zarr fancy indexing": 1}
    for _ in range(ROUNDS):
        for name, batch in ways.items():
            rows = [generator.integers(0, SAMPLES, BATCH) for _ in range(batches[name])]
            start = time.perf_counter()
            for some in rows:
                batch(some)
            speeds[name].append(BATCH * len(rows) / (time.perf_counter() - start))
    return speeds


def opening(folder: Path) -> dict[str, dict[str, float]]:
    """Return the seconds and bytes of memory for opening, by number of samples."""
    found = {}
    for samples in (10_000, 1_000_000):
        path = folder / f"{samples}.zarr"
        make_store(path, samples, random=False)
        times = []
        tracemalloc.start()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            store = LogitStore.open(path)
            times.append(time.perf_counter() - start)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        start = time.perf_counter()
        store.sections["train"].index.find(store.keys[:1])
        found[f"{samples:,}"] = {
            "open_milliseconds": round(1000 * statistics.median(times), 1),
            "open_peak_kilobytes": round(peak / 1024),
            "find_rows_milliseconds": round(1000 * (time.perf_counter() - start), 1),
        }
    return found


def decoding(device: torch.device) -> dict[str, float]:
    """Return decoding's share of a student's step, by codec."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(1280, 1000)
    features = torch.randn(STEP_BATCH, 1280, generator=generator).clamp(min=0)
    with torch.no_grad():
        output = TeacherOutput(head(features), features)
    codecs = {name: find_codec(name, 1000) for name in ("affine8", "affine6", "topk-100")}
    codecs["features"] = find_codec("features", 1000, fit_state(output, head, 0.14))
    student = build(Architecture(name="resnet18", num_classes=1000)).to(device).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    images = torch.randn(STEP_BATCH, 3, 224, 224, generator=generator).to(device)
    target = output.logits.softmax(1).to(device)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(student(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    whole = seconds_of(step, device)
    shares = {}
    for name, codec in codecs.items():
        arrays = {array: values.to(device) for array, values in codec.encode(output, TASK).items()}
        shares[name] = round(seconds_of(partial(codec.decode, arrays), device) / whole, 5)
    return shares


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of repeated calls, after one warm-up call."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "main.zarr", SAMPLES, random=True)
        start = time.perf_counter()
        store.encoded_view(0)
        view_seconds = time.perf_counter() - start
        ways = {
            "view in memory": gather(store),
            "memory-mapped file": memory_mapped(store, folder),
            "file a sample": file_a_sample(store, folder),
            "zarr fancy indexing": fancy_indexing(folder / "main.zarr"),
        }
        speeds = samples_per_second(ways)
        ours = speeds["view in memory"]
        result = {
            "environment": environment(),
            "samples_per_second": {way: round(statistics.median(found)) for way, found in speeds.items()},
            "ours_over": {
                way: round(statistics.median(a / b for a, b in zip(ours, found, strict=True)), 2)
                for way, found in speeds.items()
            },
            "view_read_megabytes_per_second": round(SAMPLES * CODEC.bytes / view_seconds / 1e6),
            "opening": opening(folder),
            "decoding_share_of_a_step": decoding(torch.device(arguments.device)),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
