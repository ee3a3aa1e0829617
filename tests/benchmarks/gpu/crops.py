"""Resized crops by matrix products: byte equality, and speed relative to the device's bounds."""

from __future__ import annotations

import os
from typing import Any

import torch

from tests.benchmarks.exact_crops import BATCH, GEOMETRIES, USED, compare, speed
from tests.benchmarks.gpu.findings import Findings, Setting

CROPS = 10_000


def run(setting: Setting, findings: Findings) -> None:
    """Compare a tenth of the crops in all geometries, then the rest; measure the speed between."""
    device, crops = torch.device(setting.device), setting.pick(CROPS, 20)
    geometries = GEOMETRIES[:: setting.pick(1, 7)]
    threads = torch.get_num_threads()
    done: dict[tuple[int, int, int], dict[str, Any]] = {}

    def compare_all(count: int, seed: int) -> None:
        torch.set_num_threads(1)  # the crops are already divided over one thread per CPU
        for geometry in geometries:
            found = compare(geometry, count, device, seed)
            done[geometry] = _added(done[geometry], found) if geometry in done else found
            _tell(findings, list(done.values()))
        torch.set_num_threads(threads)

    compare_all(crops // 10, seed=0)
    findings.keep(speed=speed(device, setting.pick(BATCH, 4)), processors=os.cpu_count())
    compare_all(crops - crops // 10, seed=1)


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    differing = {kind: one["differing"][kind] + other["differing"][kind] for kind in one["differing"]}
    return {**one, "values": one["values"] + other["values"], "differing": differing}


def _tell(findings: Findings, geometries: list[dict[str, Any]]) -> None:
    """Record differences of the precision in use; other precisions are only mentioned beside it."""
    findings.keep(geometries=geometries)
    kinds = geometries[0]["differing"]
    differing = {kind: sum(geometry["differing"][kind] for geometry in geometries) for kind in kinds}
    values = sum(geometry["values"] for geometry in geometries)
    by_kind = ", ".join(f"{kind} {count}" for kind, count in differing.items())
    used = sum(differing[kind] for kind in USED)
    findings.row("crops", used, f"{by_kind} of {values:,}, {len(geometries)} geometries")
