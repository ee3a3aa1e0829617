"""Device set-up shared by the steps."""

from __future__ import annotations

import os

import torch

from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.tasks.table import find_task
from pipeline.training.settings import Precision
from tests.benchmarks.gpu.findings import Setting


def bench_of(setting: Setting, data: PreparedData) -> RunContext:
    """Return a context on the device, with rendering threads on all CPUs but two."""
    workers = max(1, (os.cpu_count() or 1) - 2)
    return RunContext(data=data, task=find_task(), device=torch.device(setting.device), workers=workers)


def precision_of(setting: Setting) -> Precision:
    """Return the precision that suits the device."""
    return "fp32" if setting.device == "cpu" else "bf16"
