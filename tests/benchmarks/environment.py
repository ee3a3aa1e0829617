"""Describe the hardware and versions behind a measured figure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "numpy", "zarr", "numcodecs")


def environment(device: torch.device | None = None) -> dict[str, str | int]:
    """Return processor or GPU, threads and versions.

    Args:
        device: device of the measurement; None for the GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        **({"driver": _driver(), "cuda": torch.version.cuda or "none"} if on_gpu else {}),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def _driver() -> str:
    """Return the version of the GPU's driver, as reported by nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
