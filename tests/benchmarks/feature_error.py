"""Measure how well codec `features` preserves the features themselves, at several logit error budgets.

    python -m tests.benchmarks.feature_error TEACHER [--max-kl 1e-3 1e-4 1e-5] [--out FILE.json]

Needs `pipeline prepare` and `pipeline train-teacher TEACHER` in the working folder. One view is cached. For
1,024 of its images, the teacher's features are compared with the cached ones: the mean length of the error
over the mean distance to the mean features, and the correlation of the distances between images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.spec import CodecSpec
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed
from pipeline.loading.targets import Targets
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from stages import paths
from stages.runtime import keep_freed_memory
from stages.teachers import load_teacher
from tests.benchmarks.environment import environment
from tests.benchmarks.main_job import VIEWS

_IMAGES = 1024
_CPU = torch.device("cpu")


def measure(context: RunContext, teacher: Teacher, max_kl: float, folder: Path) -> dict[str, float]:
    """Return bytes per sample and view, and the error of cached features against the teacher's."""
    path = folder / f"{max_kl:g}.zarr"
    spec = DumpSpec(views=VIEWS, view_count=1, codec=CodecSpec(name="features", max_kl=max_kl))
    cache_logits(context, teacher, spec, path)
    store = LogitStore.open(path)
    feed = Feed(context.data.train, VIEWS, teacher.card.preprocessing, device=_CPU, workers=context.workers)
    rows = np.arange(_IMAGES)
    exact = teacher.output(next(feed.batches(0, [rows]))).require_features()
    cached = Targets(store, feed).load(0).features(torch.from_numpy(rows))
    spread = (exact - exact.mean(0)).norm(dim=1).mean()
    return {
        "max_kl": max_kl,
        "bytes_per_sample_view": store.summary()["bytes_per_sample_view"],
        "relative_error": float((cached - exact).norm(dim=1).mean() / spread),
        "distance_correlation": _correlation(torch.cdist(exact, exact), torch.cdist(cached, cached)),
    }


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


def main() -> None:
    """Measure each budget and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--max-kl", type=float, nargs="+", default=[1e-3, 1e-4, 1e-5])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    context = RunContext(data=PreparedData.open(paths.PREPARED), task=find_task(), device=_CPU, workers=2)
    teacher = load_teacher(options.teacher, "fp32", _CPU)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(context, teacher, max_kl, Path(folder)) for max_kl in options.max_kl]
    text = json.dumps({**environment(), "teacher": options.teacher, "rows": rows}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
