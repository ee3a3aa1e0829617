"""The steps of `scale.py`, one in a process of its own, with the package of this or of another checkout.

A step takes the path of a store and its sizes. It returns its result, and its costs where they are those of
a part of the step.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.scale_stores import add_records, finish, has_labels, header_of, make, small_dump


def step_finished(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Make a complete store; of this code without its shards' files: to open one reads none of them."""
    if find_spec("pipeline.store.catalogue") is not None:
        finish(path, **sizes)
        return {}
    make(path, **sizes)
    return step_complete(path, sizes)


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

    return _opened(path, LogitStore.open(path))


def step_index(path: Path, _: dict[str, int]) -> dict[str, Any]:
    """Open a store and read its keys and digests."""
    from pipeline.store.reader import LogitStore

    store = LogitStore.open(path)
    samples = len(store.sections["train"].index)
    return {**_opened(path, store), "samples": samples}


def _opened(path: Path, store: Any) -> dict[str, Any]:
    manifest_mb = round((path / "manifest.json").stat().st_size / 1e6, 3)
    return {"shards": store.summary()["shards"]["total"], "manifest_mb": manifest_mb}


def step_rows_equal(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Find all samples of the data, which has the store's order."""
    return _rows(path, lambda count: slice(count))


def step_rows_shuffled(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Find all samples of the data, which is in another order."""
    import numpy as np

    return _rows(path, lambda count: np.random.default_rng(2).permutation(count))


def _rows(path: Path, order: Callable[[int], Any]) -> dict[str, Any]:
    """Look for rows of samples three times, and for samples of rows once, as a student's start does."""
    from pipeline.store.index import SampleIndex
    from pipeline.store.reader import LogitStore

    store = LogitStore.open(path)
    index = store.sections["train"].index
    some = order(len(index))
    images: Any = Samples(index.keys[some].copy(), index.digests[some].copy(), index.decoder)
    before, begin = _peak_bytes(), time.process_time()
    for _number in range(3):
        rows = store.rows_of(images)
    options = {"labels": False} if has_labels() else {}
    places = SampleIndex.of(images, **options).find(index.keys)
    cost = {"cpu_seconds": round(time.process_time() - begin, 3), "memory_mb": _grown(before)}
    assert (places[rows[::1000]] == range(0, len(rows), 1000)).all()
    return {"samples": len(rows), **cost}


@dataclass(frozen=True)
class Samples:
    """Keys and digests as a split has them, whatever the labels."""

    keys: Any
    digests: Any
    decoder: str

    @property
    def content_digests(self) -> Any:
        """Digests without the label."""
        return self.digests

    def __len__(self) -> int:
        return len(self.keys)


# Of the whole process, imports included.
_STATUS = """
import json, time
from pathlib import Path
from dvc.cli import main
assert main(["status"]) == 0
told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
read = Path("/proc/self/io").read_text().split()[1]
memory = round(int(told["VmHWM"].split()[0]) / 1000, 1)
cost = {"cpu_seconds": round(time.process_time(), 3), "memory_mb": memory}
print(json.dumps({**cost, "read_mb": round(int(read) / 1e6, 2)}))
"""


def step_status(path: Path, _: dict[str, int]) -> dict[str, Any]:
    """Run `dvc status` in a project with the store, which DVC has recorded before.

    The project tracks a pointer to the store; of older code, the store's files.
    """
    import yaml

    from pipeline.modalities.table import find_modality
    from stages import render

    project, checkout = path.with_name("project"), Path(render.__file__).parents[1]
    for name in ("data/prepared", "data/logits", "models/teachers", ".dvc"):
        (project / name).mkdir(parents=True)
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        (project / name).write_bytes((checkout / name).read_bytes())
    params = yaml.safe_load((project / "params.yaml").read_text())
    teachers = [f"models/teachers/{name}.{end}" for name in params["teachers"] for end in ("pt", "json")]
    for name in ("data/prepared/dataset.json", *teachers):
        (project / name).write_text("{}")
    if "pointer" in inspect.signature(render.stages_of).parameters:
        from stages.params import Params, PlacesParams
        from stages.places import write_pointer

        (project / "dvc.yaml").write_text(render.stages_of(find_modality(), pointer=True))
        places = {"logits": str(path.parent)}
        (project / "params.yaml").write_text(yaml.safe_dump({**params, "places": places}))
        (path.parent / "main.zarr").symlink_to(path.name)
        os.chdir(project)
        write_pointer(Params(places=PlacesParams(**places)), "main")
        tracked = 1
    else:
        path.rename(project / "data/logits/main.zarr")
        os.chdir(project)
        tracked = sum(len(files) for _, _, files in os.walk("data/logits/main.zarr"))
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "commit", "-f", "cache-logits@main"], [*dvc, "status"]):
        # The first status fills DVC's own caches.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run([sys.executable, "-c", _STATUS], check=True, stdout=subprocess.PIPE, text=True)
    return {"tracked": tracked, **json.loads(done.stdout.splitlines()[-1])}


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


STEPS: dict[str, Callable[[Path, dict[str, int]], dict[str, Any]]] = {
    "make": step_make,
    "finished": step_finished,
    "begin": step_begin,
    "complete": step_complete,
    "open": step_open,
    "index": step_index,
    "rows_equal": step_rows_equal,
    "rows_shuffled": step_rows_shuffled,
    "status": step_status,
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
        "memory_mb": _grown(before),
        "read_mb": round((_read_bytes() - read) / 1e6, 2),
    }
    # A step that measures a part of itself has costs of its own.
    print(json.dumps({**cost, **found}))


def _grown(before: int) -> float:
    return round((_peak_bytes() - before) / 1e6, 1)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
