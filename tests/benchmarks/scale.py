"""Simulate large stores and measure their bookkeeping: no teacher, no images, shard files of eight bytes.

    python -m tests.benchmarks.scale FOLDER [--code OTHER_CHECKOUT] [--shards 93900] [--out FILE.json]

Stores with N samples, V views and synthetic records are made in FOLDER, at most a few gigabytes. Each step
runs in a process of its own: seconds of CPU, growth of resident memory and bytes read, all from after the
imports. With --code, each step is measured with the package of that checkout too, on a store that it made
itself. Steps:

    open        open the largest store, its keys not read
    index       the same, with the keys of all samples
    complete    turn all shards' records into a complete store
    done        find the finished shards of an unfinished store, 1,000 and 10,000
    locks       resume with so many finished shards: seconds that the store's gate is held
    default     open a store as the default dump makes it, repeatedly
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLASSES, SIZE = 10, 8
# Samples and rows of a shard; the number of views follows from the number of shards.
IMAGENET = {"samples": 1_281_167, "rows": 4096}
LARGE = {"samples": 14_200_000, "rows": 12_288}
DEFAULT = {"samples": 60_000, "rows": 4096}


def header_of(samples: int, rows: int, shards: int) -> Any:
    """Return the header of a store with about so many shards."""
    from pipeline.codecs import codec_fingerprint, find_codec
    from pipeline.codecs.spec import CodecSpec
    from pipeline.modalities.images.spec import ViewSpec
    from pipeline.store.header import Fingerprint, Header
    from pipeline.store.layout import Layout, Section
    from pipeline.store.records import versions

    codec, blocks = find_codec("affine8", CLASSES), -(-samples // rows)
    train = Section(name="train", extents=((0, samples),), n_views=max(1, shards // blocks))
    return Header(
        layout=Layout(
            codec=codec.name,
            arrays=codec.arrays,
            n_classes=CLASSES,
            shard_rows=rows,
            sections={"train": train},
            **({"keeps_labels": True} if _has_labels() else {}),
        ),
        **({"labels": "0" * 64} if _has_labels() else {}),
        fingerprint=Fingerprint(dataset="", teacher="", views="", codec=codec_fingerprint(codec)),
        teacher={
            "name": "none",
            "precision": "fp32",
            "architecture": {"name": "none"},
            "preprocessing": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 1.0},
            "classes": [str(number) for number in range(CLASSES)],
        },
        views=ViewSpec(seed=0).canonical(),
        codec_spec=CodecSpec(name=codec.name),
        batch_size=256,
        versions=versions("none"),
    )


def _has_labels() -> bool:
    """Whether this code keeps labels beside contents."""
    from pipeline.store.layout import Layout

    return "keeps_labels" in Layout.__dataclass_fields__


def _index_of(samples: int) -> Any:
    """Return random keys and digests of so many samples, and labels in the order of classes."""
    import numpy as np

    from pipeline.store.index import SampleIndex

    generator = np.random.default_rng(0)
    keys, digests = (generator.integers(0, 2**64, samples, np.uint64) for _ in range(2))
    labels = {"labels": np.sort(generator.integers(0, CLASSES, samples))} if _has_labels() else {}
    return SampleIndex(keys, digests, **labels)


def make(path: Path, samples: int, rows: int, shards: int) -> None:
    """Make an unfinished store with records of all its shards, or of the first `shards`."""
    from pipeline.store.frame import build_frame

    header = header_of(samples, rows, shards)
    build_frame(path, header, index={"train": _index_of(samples)}, state={})
    add_records(path, header, list(header.layout.shards()))


def add_records(path: Path, header: Any, shards: list[Any]) -> None:
    """Write tiny files and synthetic records of some shards, without waiting for the disk."""
    import numpy as np

    from pipeline.store.writer import StoreWriter

    generator, layout, records = np.random.default_rng(1), header.layout, StoreWriter(path, header)._records
    extra = [header.origin] if hasattr(header, "origin") else []
    for number, shard in enumerate(shards):
        content = number.to_bytes(8, "little")
        for array in layout.arrays:
            file = path / layout.shard_file(shard, array)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        record = record_of(layout.n_rows(shard), list(layout.arrays))
        files = {array: (len(content), generator.bytes(32).hex()) for array in layout.arrays}
        records.write(shard, replace(record, files=files), *extra)


@lru_cache
def fidelity_of(rows: int) -> Any:
    """Return costs as those of real dumps: lognormal, about 120 bins of each histogram."""
    import numpy as np

    from pipeline.codecs.fidelity import Fidelity
    from pipeline.codecs.rule import SOFTMAX

    costs = np.exp(np.random.default_rng(rows).normal(-9, 1.2, (rows, 2)))
    return Fidelity.of(SOFTMAX, costs, np.ones(rows, np.bool_))


def record_of(rows: int, arrays: list[str]) -> Any:
    """Return the record of a shard, with files of eight bytes."""
    import numpy as np

    from pipeline.store.records import RenderChecksums, ShardRecord, checksum_rows

    return ShardRecord(
        rows=rows,
        files=dict.fromkeys(arrays, (8, "0" * 64)),
        fidelity=fidelity_of(rows),
        labelled=rows,
        correct=rows // 2,
        checksums=RenderChecksums.of(np.zeros((len(checksum_rows(rows)), 2, 2, 3), np.uint8)),
    )


def step_finished(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Make a complete store of this code without its shards' files: to open one reads none of them."""
    import numpy as np

    from pipeline.core.hashing import file_digest
    from pipeline.places.location import Location
    from pipeline.store.catalogue import Catalogue
    from pipeline.store.frame import build_frame, frame_files
    from pipeline.store.layout import Span
    from pipeline.store.ledger import Records
    from pipeline.store.manifest import Manifest, sum_up
    from pipeline.store.shards import Catalogues

    header, generator = header_of(**sizes), np.random.default_rng(0)
    build_frame(path, header, index={"train": _index_of(sizes["samples"])}, state={})
    layout, records, named = header.layout, Records(path), {}
    for span in layout.spans():
        shards = list(span.shards())
        made = [record_of(layout.n_rows(shard), list(layout.arrays)) for shard in shards]
        catalogue = Catalogue.of(Span(span.section, span.view, span.first, span.count), made, header.origin)
        for name in ("digests", "crcs"):
            column = catalogue.columns[name]
            column[...] = generator.integers(0, 2**8, column.shape, np.uint8)
        named[str(span)] = records.put(catalogue)
    shards_of_all = Catalogues(Location(path), header, named)
    metadata = {name: file_digest(path / name) for name in frame_files(path)}
    top1 = {"direct": {}, "cached": {}}
    totals = sum_up(layout, shards_of_all.read)
    Manifest(
        header=header, shards=shards_of_all, totals=totals, metadata=metadata, teacher_top1=top1
    ).write(path)
    return {}


def step_make(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Make an unfinished store."""
    make(path, **sizes)
    return {}


def step_complete(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Complete a store, as a dump does after its last shard."""
    from pipeline.store.writer import StoreWriter

    writer = StoreWriter(path, header_of(**sizes))
    done = writer.done()
    assert len(done) == writer.layout.n_shards
    writer.tidy()
    # Older code reads the records again in each of these.
    known = {"done": done} if "done" in inspect.signature(writer.manifest).parameters else {}
    manifest = writer.manifest({}, **known)
    if not known:
        manifest = writer.manifest({})
    writer.complete_with(manifest)
    return {"shards": len(done)}


def step_open(path: Path, _: dict[str, int]) -> dict[str, Any]:
    """Open a store."""
    from pipeline.store.reader import LogitStore

    return {"shards": LogitStore.open(path).summary()["shards"]["total"]}


def step_index(path: Path, _: dict[str, int]) -> dict[str, Any]:
    """Open a store and read its keys and digests."""
    from pipeline.store.reader import LogitStore

    store = LogitStore.open(path)
    samples = len(store.sections["train"].index)
    return {"shards": store.summary()["shards"]["total"], "samples": samples}


def step_done(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Find the finished shards of an unfinished store."""
    from pipeline.store.writer import StoreWriter

    return {"done": len(StoreWriter(path, header_of(**sizes)).done())}


def step_default(path: Path, _: dict[str, int]) -> dict[str, Any]:
    """Open a small store a hundred times."""
    from pipeline.store.reader import LogitStore

    LogitStore.open(path)
    begin = time.process_time()
    for _number in range(100):
        LogitStore.open(path)
    return {"open_ms": 10 * (time.process_time() - begin)}


def step_locks(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Resume a dump of which all shards but those of one view are finished; stop before the first of them.

    Render checks are left out: their number was bounded before.
    """
    from pipeline.dump import run

    held: list[float] = []
    original = run.gate  # type: ignore[attr-defined]

    @contextmanager
    def timed(*arguments: Any, **options: Any) -> Iterator[None]:
        with original(*arguments, **options):
            begin = time.process_time()
            yield
            held.append(time.process_time() - begin)

    class Reached(Exception):
        """The first missing shard would be made now."""

    def reached(*_: Any) -> None:
        raise Reached

    for module in (run, sys.modules["pipeline.dump.open"]):
        if hasattr(module, "gate"):
            module.gate = timed  # type: ignore[attr-defined]
        if hasattr(module, "require_same_pixels"):
            module.require_same_pixels = lambda *_: None  # type: ignore[attr-defined]
    context, teacher, spec = small_dump(path.parent, sizes["shards"])
    # In older code the class is in `run`.
    maker = getattr(run, "_Dump", None) or run.ShardMaker
    maker._make_section = reached
    with suppress(Reached):
        run.cache_logits(context, teacher, spec, path)
    return {"held": sum(held), "times": len(held)}


def step_begin(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Create a store of one-row shards and give all but the last view's a record."""
    from pipeline.dump.open import open_store
    from pipeline.dump.plan import plan_dump

    plan = plan_dump(*small_dump(path.parent, sizes["shards"]), path)
    open_store(plan)
    last = plan.header.layout.sections["train"].n_views - 1
    done = [shard for shard in plan.header.layout.shards() if shard.section != "train" or shard.view < last]
    add_records(path, plan.header, done)
    return {"done": len(done)}


def small_dump(folder: Path, shards: int) -> tuple[Any, Any, Any]:
    """Return context, teacher and spec of a dump with shards of one row of a hundred images."""
    import torch

    from pipeline.codecs.spec import CodecSpec
    from pipeline.dump.spec import DumpSpec
    from pipeline.evaluation.context import RunContext
    from pipeline.modalities.images.preprocessing import Preprocessing
    from pipeline.modalities.images.spec import ViewSpec
    from pipeline.models.architecture import Architecture, build
    from pipeline.models.checkpoint import ModelCard
    from pipeline.models.teacher import Teacher
    from pipeline.tasks.table import find_task

    data = small_data(folder / "prepared")
    torch.manual_seed(0)
    architecture = Architecture(name="wrn_16_2", num_classes=3, channels=1, stem_stride=1)
    preprocessing = Preprocessing(size=SIZE, **data.statistics)
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=data.classes)
    teacher = Teacher(name="t", network=build(architecture).eval(), card=card, precision="fp32")
    views = shards // len(data.train) + 1
    spec = DumpSpec(
        views=ViewSpec(seed=9),
        view_count=views,
        codec=CodecSpec(name="affine8"),
        batch_size=8,
        shard_rows=1,
        allow_poor_teacher=True,
    )
    return (
        RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1),
        teacher,
        spec,
    )


def small_data(folder: Path) -> Any:
    """Return a hundred grey training images and four test images, prepared once."""
    import numpy as np

    from pipeline.modalities.images.form import ImageSource
    from pipeline.modalities.prepared import PreparedData
    from pipeline.samples.samples import Sample
    from tests.pipeline.preparing import asking, prepare

    if not folder.exists():
        images = np.random.default_rng(0).integers(0, 256, (104, SIZE, SIZE, 1)).astype(np.uint8)
        samples = [Sample(str(row), row % 3, partial(images.__getitem__, row)) for row in range(104)]
        source = ImageSource(classes=("a", "b", "c"), channels=1, train=samples[:100], test=samples[100:])
        prepare(
            source,
            folder,
            asking(origin="test", validation=0.0),
            state=folder.with_name("state"),
            workers=1,
            progress=lambda some, _: iter(some),
        )
    return PreparedData.open(folder)


STEPS: dict[str, Callable[[Path, dict[str, int]], dict[str, Any]]] = {
    "make": step_make,
    "finished": step_finished,
    "begin": step_begin,
    "complete": step_complete,
    "open": step_open,
    "index": step_index,
    "done": step_done,
    "locks": step_locks,
    "default": step_default,
}


def work(step: str, path: Path, sizes: dict[str, int]) -> None:
    """Run one step in this process and print its cost."""
    import pipeline.dump.run
    import pipeline.dump.verify  # noqa: F401

    # Waiting for a disk is no matter of the code, and no CPU time.
    os.fsync = lambda fd: None
    before, read, begin = _peak_bytes(), _read_bytes(), time.process_time()
    found = STEPS[step](path, sizes)
    cost = {
        "cpu_seconds": round(time.process_time() - begin, 3),
        "memory_mb": round((_peak_bytes() - before) / 1e6, 1),
        "read_mb": round((_read_bytes() - read) / 1e6, 2),
    }
    print(json.dumps({**found, **cost}))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(code: Path, step: str, path: Path, **sizes: int) -> dict[str, Any]:
    """Run one step with the package of a checkout, in a process of its own."""
    command = [
        sys.executable,
        "-P",
        str(Path(__file__)),
        str(path),
        "--step",
        step,
        "--sizes",
        json.dumps(sizes),
    ]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=code)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{code.name}: {step} {sizes}: {found}", flush=True)
    return found


def simulate(code: Path, folder: Path, shards: int, steps: list[str]) -> dict[str, Any]:
    """Measure the steps with one checkout."""
    results: dict[str, Any] = {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if "open" in steps:
        sizes, path = {**IMAGENET, "shards": shards}, folder / "imagenet.zarr"
        measure(code, "make", path, **sizes)
        results["complete"] = measure(code, "complete", path, **sizes)
        results["open"] = measure(code, "open", path, **sizes)
        shutil.rmtree(path)
    if "index" in steps:
        sizes, path = {**LARGE, "shards": shards}, folder / "large.zarr"
        measure(code, "make", path, **sizes)
        measure(code, "complete", path, **sizes)
        results["index"] = measure(code, "index", path, **sizes)
        shutil.rmtree(path)
    for name, large in (("open_only", IMAGENET), ("index_only", LARGE)):
        if name in steps:
            sizes, path = {**large, "shards": shards}, folder / f"{name}.zarr"
            measure(code, "finished", path, **sizes)
            results[name] = measure(code, name.removesuffix("_only"), path, **sizes)
            shutil.rmtree(path)
    if "default" in steps:
        sizes, path = {**DEFAULT, "shards": 15 * 15}, folder / "default.zarr"
        measure(code, "make", path, **sizes)
        measure(code, "complete", path, **sizes)
        results["default"] = measure(code, "default", path, **sizes)
    for count in (1000, 10_000):
        if "locks" in steps:
            place = folder / str(count)
            place.mkdir()
            path = place / "main.zarr"
            measure(code, "begin", path, shards=count)
            results[f"locks_{count}"] = measure(code, "locks", path, shards=count)
        if "done" in steps:
            sizes, path = {"samples": 1000 * 64, "rows": 64, "shards": count}, folder / f"done{count}.zarr"
            measure(code, "make", path, **sizes)
            results[f"done_{count}"] = measure(code, "done", path, **sizes)
            shutil.rmtree(path)
    return results


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--shards", type=int, default=93_900)
    parser.add_argument("--steps", nargs="+", default=["open", "index", "default", "locks", "done"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        work(arguments.step, arguments.folder, arguments.sizes)
        return
    from tests.benchmarks.environment import environment

    codes = {"before": arguments.code, "now": ROOT} if arguments.code else {"now": ROOT}
    results: dict[str, Any] = {"shards": arguments.shards}
    for name, code in codes.items():
        folder = arguments.folder / name
        results[name] = simulate(code.resolve(), folder, arguments.shards, arguments.steps)
        shutil.rmtree(folder)
    results["environment"] = environment()
    text = json.dumps(results, indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
