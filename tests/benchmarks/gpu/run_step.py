"""Run one step in this process; `gpu/__main__.py` starts it once per step."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.processes import NO_DEVICE


def run(name: str, setting: Setting, file: Path) -> list[str]:
    """Run a step and return the required measures that failed."""
    device = torch.device(setting.device)
    head = {
        "step": name,
        "device": setting.device,
        "small": setting.small,
        "environment": environment(device),
    }
    findings = Findings(file, head)
    importlib.import_module(f"tests.benchmarks.gpu.{name}").run(setting, findings)
    return findings.broken


def main() -> None:
    """Run a step; exit with 0 if it finished and all required measures hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if torch.device(given.device).type == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device; use a machine with one, or --device cpu")
        sys.exit(NO_DEVICE)
    if given.device == "cpu":
        keep_freed_memory()
    setting = Setting(device=given.device, small=given.small)
    broken = run(given.name, setting, given.file)
    sys.exit(f"failed: {'; '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main()
