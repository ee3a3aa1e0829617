"""Compare a student's epoch from cached logits with epochs from labels and with the teacher in the loop."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from pipeline.store.reader import LogitStore
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import made_up
from tests.benchmarks.gpu.findings import Findings, Setting, spread_text
from tests.benchmarks.gpu.machine import bench_of, precision_of
from tests.benchmarks.students_cost import epoch_ratios, make_rig
from tests.benchmarks.teacher_times import TEACHERS


def run(setting: Setting, findings: Findings) -> None:
    """Choose a teacher of about ten times the student's cost, then alternate epochs."""
    data = made_up(setting.pick(32_768, 8), setting.pick(32, 12), classes=setting.pick(100, 2))
    settings = TrainingSettings(
        epochs=1,
        batch_size=setting.pick(
            2048, 4
        ),  # smaller batches leave a GPU idle, so that all teachers cost the same
        learning_rate=0.05,
        precision=precision_of(setting),
    )
    names = tuple(TEACHERS)[: setting.pick(len(TEACHERS), 2)]
    with tempfile.TemporaryDirectory() as folder:
        rig, parts = make_rig(bench_of(setting, data), "mobilenet", settings, Path(folder), names)
        times = parts.teacher_forward / parts.student_forward
        findings.keep(parts=asdict(parts), teacher_times_student=times, bound=parts.cached_over_online())
        found = epoch_ratios(rig, LogitStore.open(rig.dump("epochs", 2)), setting.pick(5, 1))
    findings.keep(**found)
    findings.ratio("cross_entropy", found["cached_seconds_over_cross_entropy"])
    online = found["cached_seconds_over_online"]
    bound = f"bound {parts.cached_over_online():.3f}, {parts.teacher} of {times:.1f} times the student"
    findings.row("online", online["median"], f"{spread_text(online)}; {bound}")
