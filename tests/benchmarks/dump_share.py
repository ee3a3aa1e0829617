"""Measure the shares of encoding, comparing and writing in the time of a dump, with a ResNet-50.

    python -m tests.benchmarks.dump_share PHOTOGRAPHS [--device cpu] [--out FILE.json]

Torchvision's ResNet-50 (1,000 classes, 224 pixels; untrained, which costs the same) dumps random crops of
the photographs with each codec. Encoding runs on the device between two batches, writing in a thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

from pipeline.codecs import Codec
from pipeline.codecs.spec import CodecSpec
from pipeline.dump import run
from pipeline.dump.plan import DumpPlan, plan_dump
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.store.writer import StoreWriter
from pipeline.tasks.classes import Classes
from pipeline.tasks.table import find_task
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.imagenet_teacher import CLASSES, VIEWS, prepared_photographs

CODECS = ("affine8", "affine6", "topk-100", "features")


def resnet50(device: torch.device, precision: Literal["fp32", "bf16"] = "fp32") -> Teacher:
    """Return an untrained ResNet-50."""
    torch.manual_seed(0)
    architecture = Architecture(name="resnet50", num_classes=CLASSES)
    network = build(architecture).eval().to(device, memory_format=torch.channels_last)
    preprocessing = Preprocessing(
        size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_fraction=0.875
    )
    card = ModelCard(
        architecture=architecture, preprocessing=preprocessing, classes=tuple(map(str, range(CLASSES)))
    )
    return Teacher(name="resnet50", network=network, card=card, precision=precision)


@contextmanager
def timed(spent: Counter[str], device: torch.device) -> Iterator[None]:
    """Add up the seconds of the dump's parts."""

    def watch(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                spent[name] += time.perf_counter() - start

        return watched

    def watched_codec(codec: Codec) -> Codec:
        return replace(codec, encode=watch("encode", codec.encode), decode=watch("compare", codec.decode))

    planned = run.plan_dump

    def plan_watched(*given: Any) -> DumpPlan:
        plan = planned(*given)
        return replace(plan, codec=watched_codec(plan.codec))

    with (
        patch.object(run, "plan_dump", plan_watched),
        patch.object(Classes, "diverge", watch("compare", Classes.diverge)),
        patch.object(Classes, "agree", watch("compare", Classes.agree)),
        patch.object(StoreWriter, "write", watch("write", StoreWriter.write)),
        patch.object(Teacher, "output", watch("forward", Teacher.output)),
    ):
        yield


def shares(context: RunContext, teacher: Teacher, codec: str) -> dict[str, float]:
    """Dump once; return the seconds of each part, and their share of the total without the pilot."""
    spent: Counter[str] = Counter()
    settings = {"batch_size": 200, "allow_poor_teacher": True}
    spec = DumpSpec(views=VIEWS, view_count=1, codec=CodecSpec(name=codec), **settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.zarr"
        run.open_store(plan_dump(context, teacher, spec, path))
        start = time.perf_counter()
        with timed(spent, context.device):
            run.cache_logits(context, teacher, spec, path)
        seconds = time.perf_counter() - start
    on_device = spent["encode"] + spent["compare"]
    return {
        "seconds": round(seconds, 2),
        **{f"{part}_share": round(value / seconds, 4) for part, value in sorted(spent.items())},
        "encode_compare_write_share": round((on_device + spent["write"]) / seconds, 4),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = prepared_photographs(arguments.photographs, Path(folder))
        context, teacher = (
            RunContext(data=data, task=find_task(), device=device, workers=2),
            resnet50(device),
        )
        result = {
            "environment": environment(),
            "codecs": {codec: shares(context, teacher, codec) for codec in CODECS},
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
