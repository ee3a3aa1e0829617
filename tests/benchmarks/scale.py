"""Simulate large stores and measure their bookkeeping: no teacher, no images, shard files of eight bytes.

    python -m tests.benchmarks.scale FOLDER FILE.json [--code OTHER_CHECKOUT] [--plans large ...]

Stores with N samples, V views and synthetic records are made in FOLDER, at most a few gigabytes, and
removed. Each step runs in a process of its own: seconds of CPU, growth of resident memory and bytes read,
all from after the imports. With --code, the package of that checkout is measured instead of this one, on
stores that it made itself. Results are added to FILE.json one by one; a plan whose results it has is left
out. Plans:

    imagenet   1.28 M samples x 300 views: complete the store, open it, `dvc status` of a project with it
    ten_views  the same with 10 views, for code whose costs grow with the shards
    large      14.2 M samples x 89 views: open the store and read all keys
    rows       14.2 M samples: find the rows of all samples, as often as the start of a student does
    default    open a store as the default dump makes it, a hundred times
    done       find the finished shards of an unfinished store, 1,000 and 10,000
    locks      resume with so many finished shards: seconds that the store's gate is held
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Samples and rows of a shard; the number of views follows from the number of shards.
IMAGENET = {"samples": 1_281_167, "rows": 4096, "shards": 93_900}
LARGE = {"samples": 14_200_000, "rows": 12_288, "shards": 104_000}
TEN_VIEWS = {**IMAGENET, "shards": 3130}
ONE_VIEW = {**LARGE, "shards": 1_156}
DEFAULT = {"samples": 60_000, "rows": 4096, "shards": 15 * 15}
COUNTS = (1000, 10_000)
Results = Iterator[tuple[str, dict[str, Any]]]
# The steps of this checkout, whichever checkout's package they measure.
_RUN = """
import json, sys
from pathlib import Path
import tests.benchmarks
tests.benchmarks.__path__.insert(0, sys.argv[1])
from tests.benchmarks.scale_steps import work
work(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
"""


def measure(code: Path, step: str, path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Run one step with the package of a checkout, in a process of its own."""
    asked = [str(Path(__file__).parent), step, str(path), json.dumps(sizes)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", _RUN, *asked]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=code)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{step} {sizes}: {found}", file=sys.stderr, flush=True)
    return found


def imagenet(code: Path, folder: Path) -> Results:
    """Yield the costs of completing and opening a store, and of `dvc status` with it."""
    path = folder / "imagenet.zarr"
    measure(code, "make", path, IMAGENET)
    for step in ("complete", "open", "status"):
        yield step, measure(code, step, path, IMAGENET)


def ten_views(code: Path, folder: Path) -> Results:
    """Yield the costs of completing and opening a store of a thirtieth of the views."""
    path = folder / "ten_views.zarr"
    measure(code, "make", path, TEN_VIEWS)
    for step in ("complete", "open"):
        yield f"{step}_ten_views", measure(code, step, path, TEN_VIEWS)


def large(code: Path, folder: Path) -> Results:
    """Yield the cost of opening a store with its keys."""
    path = folder / "large.zarr"
    measure(code, "finished", path, LARGE)
    yield "index", measure(code, "index", path, LARGE)


def rows(code: Path, folder: Path) -> Results:
    """Yield the costs of finding rows by key."""
    path = folder / "rows.zarr"
    measure(code, "finished", path, ONE_VIEW)
    for step in ("rows_equal", "rows_shuffled"):
        yield step, measure(code, step, path, ONE_VIEW)


def default(code: Path, folder: Path) -> Results:
    """Yield the cost of opening a small store."""
    path = folder / "default.zarr"
    measure(code, "make", path, DEFAULT)
    measure(code, "complete", path, DEFAULT)
    yield "default", measure(code, "default", path, DEFAULT)


def done(code: Path, folder: Path) -> Results:
    """Yield the costs of finding finished shards."""
    for count in COUNTS:
        sizes, path = {"samples": 64_000, "rows": 64, "shards": count}, folder / f"{count}.zarr"
        measure(code, "make", path, sizes)
        yield f"done_{count}", measure(code, "done", path, sizes)


def locks(code: Path, folder: Path) -> Results:
    """Yield the time that a resumed dump holds the gate."""
    for count in COUNTS:
        path = folder / str(count) / "main.zarr"
        path.parent.mkdir()
        measure(code, "begin", path, {"shards": count})
        yield f"locks_{count}", measure(code, "locks", path, {"shards": count})


# The names of each plan's results.
PLANS: dict[str, tuple[Callable[[Path, Path], Results], tuple[str, ...]]] = {
    "imagenet": (imagenet, ("complete", "open", "status")),
    "ten_views": (ten_views, ("complete_ten_views", "open_ten_views")),
    "large": (large, ("index",)),
    "rows": (rows, ("rows_equal", "rows_shuffled")),
    "default": (default, ("default",)),
    "done": (done, tuple(f"done_{count}" for count in COUNTS)),
    "locks": (locks, tuple(f"locks_{count}" for count in COUNTS)),
}


def add(out: Path, code: str, name: str, cost: dict[str, Any]) -> None:
    """Add a result to a file, which other processes may be adding to between two plans."""
    from tests.benchmarks.environment import environment

    results = read(out)
    results.setdefault(code, {})[name] = cost
    out.write_text(json.dumps({**results, "environment": environment()}, indent=1) + "\n")


def read(out: Path) -> dict[str, Any]:
    """Return the results so far."""
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    return found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--code", type=Path, help="another checkout, measured instead of this one")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    arguments = parser.parse_args()
    name = "now" if arguments.code is None else "before"
    code, folder = (arguments.code or ROOT).resolve(), arguments.folder.resolve() / name
    for plan in arguments.plans:
        make, names = PLANS[plan]
        if set(names) <= set(read(arguments.out).get(name, {})):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for result, cost in make(code, folder):
            add(arguments.out, name, result, cost)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
