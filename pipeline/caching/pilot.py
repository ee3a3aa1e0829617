"""The pilot: the teacher on a few samples, before the dump, to choose a codec and to foretell the cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.bench import Bench
from pipeline.caching.spec import DumpSpec
from pipeline.codecs import TeacherOutput
from pipeline.core.errors import ModelError
from pipeline.models.teacher import Teacher

_MOST_ROWS, _FEWEST_ROWS = 2048, 256
_SHARE = 64
_BATCHES_AT_LEAST = 4


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a teacher says of a few training samples in the first views.

    Args:
        output: of n rows, on the device.
        images_per_second: rendered and seen by the teacher; the first batch, which warms up, apart.
    """

    output: TeacherOutput
    images_per_second: float

    def __len__(self) -> int:
        return len(self.output.logits)


def pilot_rows(n_samples: int, n_views: int, foretold: int | None = None) -> tuple[int, int]:
    """Return of how many samples a pilot is, and in how many views: one, unless samples are few.

    It has a 64th of the dump's rows, at least 256 and at most 2,048.

    Args:
        n_samples: that are there.
        n_views: of the dump.
        foretold: samples of the dump; None for those that are there.
    """
    rows = (foretold or n_samples) * n_views
    wanted = min(_MOST_ROWS, max(_FEWEST_ROWS, rows // _SHARE))
    return min(n_samples, wanted), min(n_views, -(-wanted // n_samples))


def run_pilot(bench: Bench, teacher: Teacher, spec: DumpSpec, foretold: int | None = None) -> Pilot:
    """Run the teacher over samples spread evenly over the training split.

    Args:
        bench: the data and the device.
        teacher: whose logits.
        spec: what to dump.
        foretold: training samples of the dump; None for those that are there.

    Raises:
        DataError: an image is not the one that was prepared.
        ModelError: logits are not finite.
    """
    images = bench.data.train
    count, n_views = pilot_rows(len(images), spec.view_count, foretold)
    size = min(spec.batch_size, -(-count // _BATCHES_AT_LEAST))
    feed = bench.feed(images, spec.views, teacher.card.preprocessing)
    batches = [
        (view, rows[start : start + size])
        for view in range(n_views)
        for rows in [feed.spread(view, count)]
        for start in range(0, len(rows), size)
    ]
    images.require_unchanged(np.unique(np.concatenate([rows for _, rows in batches])))
    outputs, times = [], [time.perf_counter()]
    for batch in feed.stream(batches):
        outputs.append(teacher.output(batch))
        # Also waits for the device, so that the clock tells the truth.
        if not bool(outputs[-1].are_finite().all()):
            raise ModelError(
                f"teacher {teacher.name} gives logits that are not finite for training images; expected "
                "numbers; use precision: fp32 or other weights"
            )
        times.append(time.perf_counter())
    return Pilot(_joined(outputs), _rate([len(batch) for _, batch in batches], times))


def _joined(outputs: list[TeacherOutput]) -> TeacherOutput:
    features = [output.features for output in outputs if output.features is not None]
    logits = torch.cat([output.logits for output in outputs])
    return TeacherOutput(logits, torch.cat(features) if len(features) == len(outputs) else None)


def _rate(sizes: list[int], times: list[float]) -> float:
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / (times[-1] - times[first])
