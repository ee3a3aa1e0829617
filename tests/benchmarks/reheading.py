"""Compare re-headed dumps with what the teacher with that head says, on every view.

    python -m tests.benchmarks.reheading FOLDER [--images 1500] [--views 2] [--out FILE.json]

The built-in teacher is dumped on the first built-in images: by `features` at several budgets, and as
embeddings by `auto`. Each dump gets three heads: its ten classes merged into shoes, bags and clothes, a
linear probe of the labels, and zero-shot vectors (the class means of the un-augmented validation images).
Then the teacher runs on every training image in every view. Its own features through the same head are the
truth: agreement of the first class and KL(truth || re-headed), beside the estimate of the re-headed dump.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.head import Head
from pipeline.codecs.spec import CodecSpec
from pipeline.dump.rehead import PROBE, HeadSpec, rehead
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import consecutive
from pipeline.modalities.images.sources.arrays import load_subset
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.store.rehead import require_features
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.embedding import EMBEDDING
from stages.runtime import keep_freed_memory
from stages.teachers import load_teacher
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.main_job import VIEWS

GROUPS = {"shoes": [5, 7, 9], "bags": [8], "clothes": [0, 1, 2, 3, 4, 6]}
# Name -> teacher, codec and budget.
DUMPS = {
    "features, max_kl 1e-3": ("classifier", CodecSpec(name="features", max_kl=1e-3)),
    "features, max_kl 1e-5": ("classifier", CodecSpec(name="features", max_kl=1e-5)),
    "embeddings, max_error 1e-4": ("encoder", CodecSpec(name="auto", max_error=1e-4)),
}
_BATCH, _TEMPERATURE = 250, 0.05
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The teacher's features (N, D) of every view, and its last layer."""

    views: list[Tensor]
    weight: Tensor
    bias: Tensor


def lay_out(folder: Path, images: int) -> None:
    """Prepare the first built-in images, and the built-in teacher twice: as classifier and encoder."""
    arrays = load_subset()
    kept = {n: a[: images if n.startswith("train") else 300] for n, a in arrays.items()}
    kept.pop("train_positions", None)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "some.npz", **kept)
    model = {"model": "wrn_16_2", "weights": "FASHION_MNIST_V1"}
    params = {
        "data": {"source": "npz:some.npz", "watch": "some.npz", "validation": 0.1},
        "teachers": {"classifier": model, "encoder": {**model, "output": "embedding"}},
    }
    (folder / "params.yaml").write_text(json.dumps(params))
    for command in (["prepare"], ["train-teacher", "classifier"], ["train-teacher", "encoder"]):
        pipeline(folder, *command)


def run_teacher(context: RunContext, teacher: Teacher, n_views: int) -> Truth:
    """Run the teacher on every training image in every view."""
    images, head = context.data.train, teacher.head
    assert head is not None
    feed = context.feed(images, VIEWS, teacher.card.preprocessing)
    batches = consecutive(len(images), _BATCH)
    views = [
        torch.cat([teacher.output(some).require_features() for some in feed.batches(view, batches)])
        for view in range(n_views)
    ]
    return Truth(views=views, weight=head.weight.detach(), bias=head.bias.detach())


def make_heads(
    folder: Path, store: LogitStore, name: str, context: RunContext, truth: Truth
) -> dict[str, tuple[HeadSpec, Head]]:
    """Return the three heads of a dump, from files as users write them."""
    weight, bias = truth.weight.numpy(), truth.bias.numpy()
    groups = np.array([[c in members for members in GROUPS.values()].index(True) for c in range(10)])
    np.savez(folder / "merged.npz", weight=weight, bias=bias, groups=groups, classes=np.array([*GROUPS]))
    labels = context.data.validation.labels
    held_out = require_features(name, store)
    section = store.sections["validation"]
    arrays = {n: torch.from_numpy(a) for n, a in section.encoded(0).items()}
    vectors = held_out.decode(arrays)[torch.from_numpy(section.rows_of(context.data.validation))]
    means = np.stack([vectors[torch.from_numpy(labels == c)].mean(0).numpy() for c in range(10)])
    classes = np.array(context.data.classes)
    np.savez(
        folder / "zero_shot.npz", prototypes=means, temperature=np.float32(_TEMPERATURE), classes=classes
    )
    budget = CodecSpec(name="features", max_kl=10)
    sources = {
        "merged": str(folder / "merged.npz"),
        "probe": PROBE,
        "zero-shot": str(folder / "zero_shot.npz"),
    }
    specs = {title: HeadSpec(source=source, budget=budget) for title, source in sources.items()}
    return {
        title: (spec, spec.find(name, store, context, lambda: context.data.train.labels))
        for title, spec in specs.items()
    }


def compare(path: Path, spec: HeadSpec, head: Head, context: RunContext, truth: Truth) -> dict[str, Any]:
    """Re-head a dump, and compare it with the teacher with this head on every row of every view."""
    made = rehead(path.with_name("reheaded.zarr"), path.name, spec, head, context)
    places = torch.from_numpy(made.rows_of(context.data.train))
    divergences, same = [], []
    for view, features in enumerate(truth.views):
        said, stored = head.outputs(features), made.view(view)[places]
        divergences.append(CLASSES.diverge(said, stored))
        same.append(CLASSES.agree(said, stored))
    kl, agreement = torch.cat(divergences).mean(0), torch.cat(same).double().mean()
    estimated = made.finding.fidelity
    return {
        "rows": len(torch.cat(same)),
        "agreement": float(agreement),
        "kl_t1": float(kl[0]),
        "kl_t4": float(kl[1]),
        "estimated_kl_t1": estimated.mean("kl_t1"),
        "estimated_kl_t4": estimated.mean("kl_t4"),
        "scale": made.finding.scale,
    }


def measure(folder: Path, context: RunContext, n_views: int) -> list[dict[str, Any]]:
    """Return one row per dump and head."""
    teachers = {name: load_teacher(name, "fp32", _CPU) for name in ("classifier", "encoder")}
    truth, rows = run_teacher(context, teachers["classifier"], n_views), []
    for number, (title, (teacher, codec)) in enumerate(DUMPS.items()):
        path = folder.resolve() / f"dump-{number}.zarr"
        spec = DumpSpec(views=VIEWS, view_count=n_views, codec=codec, allow_poor_teacher=True)
        task = EMBEDDING if teacher == "encoder" else CLASSES
        cache_logits(context.under(task), teachers[teacher], spec, path)
        store = LogitStore.open(path)
        size = store.summary()["bytes_per_sample_view"]
        for head_title, (head_spec, head) in make_heads(folder, store, path.name, context, truth).items():
            found = compare(path, head_spec, head, context, truth)
            rows.append({"dump": title, "bytes_per_sample_view": size, "head": head_title, **found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure every dump and head, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    out = None if given.out is None else given.out.resolve()
    if not (given.folder / "models").exists():
        lay_out(given.folder, given.images)
    os.chdir(given.folder)
    data = PreparedData.open(Path("data/prepared"))
    context = RunContext(data=data, task=CLASSES, device=_CPU, workers=2)
    rows = measure(Path(), context, given.views)
    text = json.dumps(
        {"environment": environment(), "images": len(data.train), "views": given.views, "rows": rows},
        indent=1,
    )
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
