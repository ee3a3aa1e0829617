"""What a figure was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "numpy", "zarr", "numcodecs")


def environment() -> dict[str, str | int]:
    """Return processor or GPU, threads and versions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
