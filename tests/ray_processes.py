"""The processes of a command that works on Ray."""

from __future__ import annotations

import re
import subprocess

import psutil


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all processes that a command has started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return those that make shards now."""
    return _named(process, "ray::_Worker.do$")


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return those that train one model together."""
    return _named(process, "ray::RayTrainWorker")


def commands_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return those that run a whole command in a process of its own."""
    return _named(process, "ray::_run_process")


def _named(process: subprocess.Popen[str], pattern: str) -> list[psutil.Process]:
    found = []
    for each in family_of(process):
        try:
            if re.match(pattern, "".join(each.cmdline()[:1])):
                found.append(each)
        except psutil.Error:
            continue
    return found
