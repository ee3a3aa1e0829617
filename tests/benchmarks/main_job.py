"""Measure ratios of the main job, each pair in one run on this machine.

    python -m tests.benchmarks.main_job [--device cpu] [--rounds 5] [--out FILE.json]

Needs `pipeline prepare` and `pipeline train-teacher wrn_16_2` in the working folder. Prints

* dump images/s over images/s of the teacher's bare forward pass on resident pixels, for the whole data;
* student images/s with the loader over images/s of the same step on one repeated batch;
* seconds of an epoch of cached KD over seconds of an epoch of online KD (teacher in the loop);
* seconds of an epoch of cached KD over seconds of an epoch of cross-entropy with the same loader;
* bytes per sample and view of the dump, by codec.

The two sides of a ratio alternate, because machines are shared and noisy. Printed are the ratio of the
fastest rounds, which are disturbed least, the ratio of the medians, and the median and range of the rounds'
ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.codecs.spec import CodecSpec
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.augmentations import PadCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.pretrained import Start
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.settings import TrainingSettings
from stages import paths
from stages.runtime import keep_freed_memory
from stages.teachers import load_teacher
from tests.benchmarks.environment import environment
from tests.benchmarks.student_epochs import Student, StudentEpochs
from tests.benchmarks.timing import ratio

VIEWS = ViewSpec(seed=1, pad_crop=PadCrop(padding=2), flip="random")
SETTINGS = TrainingSettings(epochs=1, batch_size=128, learning_rate=0.05)
VIEW_COUNT = 4
SAMPLES = 3840
STUDENTS = {
    "shufflenet": Start(
        model="shufflenet_v2_x0_5", weights=None, size=None, channels=None, stem_stride=2, options={}
    ),
    "mobilenet": Start(
        model="mobilenet_v2",
        weights=None,
        size=None,
        channels=None,
        stem_stride=2,
        options={"width_mult": 0.35},
    ),
}


def dump_spec(codec: str, view_count: int, **settings: Any) -> DumpSpec:
    """Return the settings of a dump."""
    return DumpSpec(views=VIEWS, view_count=view_count, codec=CodecSpec(name=codec), **settings)


def dump_ratio(context: RunContext, teacher: Teacher, rounds: int) -> dict[str, float]:
    """Return a dump's throughput over the bare forward's: the forward's seconds over the dump's."""
    images, device, size = context.data.train, context.device, 256
    feed = context.feed(images, VIEWS, teacher.card.preprocessing)
    resident = next(feed.batches(0, [np.arange(size)]))
    held_out = sum(len(s) for s in (context.data.validation, context.data.test))
    batches = -(-(VIEW_COUNT * len(images)) // size) + -(-held_out // size)
    folder = Path(tempfile.mkdtemp())
    plan = dump_spec("affine8", VIEW_COUNT, batch_size=size)
    count = itertools.count()

    def bare() -> None:
        for _ in range(batches):
            teacher.logits(resident)

    def dump() -> None:
        cache_logits(context, teacher, plan, folder / f"{next(count)}.zarr")

    try:
        return ratio(rounds, device, bare, dump)
    finally:
        shutil.rmtree(folder)


def student_ratios(context: RunContext, teacher: Teacher, start: Start, rounds: int) -> dict[str, Any]:
    """Compare the loader with a repeated batch, and cached with online distillation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dump.zarr"
        plan = dump_spec("affine8", 2)
        cache_logits(context, teacher, plan, path)
        store = LogitStore.open(path)
        epochs = StudentEpochs(context, Student(context, start, SETTINGS), teacher, store, VIEWS)
        device = context.device
        return {
            "loader_over_repeated_batch": ratio(rounds, device, epochs.one_batch, epochs.cached),
            "cached_seconds_over_online": ratio(rounds, device, epochs.cached, epochs.online),
            "cached_seconds_over_cross_entropy": ratio(rounds, device, epochs.cached, epochs.cross_entropy),
        }


def bytes_by_codec(context: RunContext, teacher: Teacher) -> dict[str, dict[str, float]]:
    """Return bytes per sample and view, and the KL of each codec."""
    result = {}
    for codec in ("fp16", "affine8", "affine6", "affine4", "topk-3", "features"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dump.zarr"
            cache_logits(context, teacher, dump_spec(codec, 1), path)
            summary = LogitStore.open(path).summary()
            result[codec] = {
                "bytes_per_sample_view": summary["bytes_per_sample_view"],
                **summary["fidelity"],
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    whole = PreparedData.open(paths.PREPARED)
    data = replace(
        whole,
        train=whole.train.subset(np.arange(SAMPLES)),
        validation=whole.validation.subset(np.arange(512)),
        test=whole.test.subset(np.arange(512)),
    )
    context = RunContext(data=data, task=find_task(), device=device, workers=2)
    teacher = load_teacher("wrn_16_2", "fp32", device)
    results: dict[str, Any] = {
        "environment": environment(),
        "dump_over_bare_forward": dump_ratio(replace(context, data=whole), teacher, arguments.rounds),
        "students": {
            name: student_ratios(context, teacher, start, arguments.rounds)
            for name, start in STUDENTS.items()
        },
        "codecs": bytes_by_codec(context, teacher),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
